"""`fsqueue embed search`, `export` and `store`: ask a store, take it elsewhere, tend it.

A door to click, as `cli.py`. What a command needs is imported when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from fsqueue import UsageError
from fsqueue.cli.options import SETTINGS, Duration, json_option, plural, print_json, print_table

if TYPE_CHECKING:
    from embed.query import Answer

SNIPPET: Final = 160


def _store_argument(command: Any) -> Any:
    return click.argument("root", metavar="STORE", type=click.Path(), envvar="FSQUEUE_STORE")(
        command
    )


def _space_options(command: Any) -> Any:
    command = click.option("--model", metavar="NAME", help="Which, if the collection has several.")(
        command
    )
    return click.option("--collection", default="default", show_default=True)(command)


@click.command("search", context_settings=SETTINGS)
@click.argument("words", metavar="STORE QUERY", nargs=-1)
@click.option("-k", "count", type=click.IntRange(1, 10_000), default=10, show_default=True)
@_space_options
@click.option("--weights", metavar="MODEL", help="Where the model is now, if it was a folder that "
              "moved: a folder, or a hub id.")  # fmt: skip
@json_option
def search(words: tuple[str, ...], count: int, as_json: bool, **how: Any) -> None:
    """Find the nearest vectors in STORE of each sequence in the FASTA file QUERY, or of a text.

    Neighbours are exact, by cosine. QUERY is embedded as the store's vectors were: in a store of
    texts it is a text, the file of one, or - for standard input. A .npy file holds vectors of its
    own, (queries, width).
    """
    from embed.query import ask

    root, query = _store_and("QUERY", words)
    answers = ask(root, query, count, **how)
    if as_json:
        print_json([_as_json(answer) for answer in answers])
        return
    if any(hit.text for answer in answers for hit in answer.hits):
        _print_texts(answers)
        return
    rows = [
        (answer.query, number, hit.record, hit.input, f"{score:.4f}", hit.length)
        for answer in answers
        for number, (hit, score) in enumerate(zip(answer.hits, answer.scores, strict=True), 1)
    ]
    print_table(("query", "rank", "record", "input", "cosine", "length"), rows, left=1)


ROADS = ("lancedb", "chroma", "faiss", "h5", "parquet", "npz")


@click.command("export", context_settings=SETTINGS)
@click.argument("words", metavar="STORE TARGET", nargs=-1)
@click.option("--to", required=True, type=click.Choice(ROADS))
@_space_options
@click.option("--name", help="What the table or collection is called there. Default: as in STORE.")
@click.option("--dry-run", is_flag=True, help="Only say how many vectors would be added.")
@json_option
def export(words: tuple[str, ...], to: str, as_json: bool, **how: Any) -> None:
    """Add to TARGET what it lacks of STORE: run it again, and it adds what is new.

    \b
    lancedb  a database: a directory, or whatever lancedb.connect() takes
    chroma   a database: a directory, or a server's URL (default: CHROMADB_URL)
    faiss    a flat index of unit vectors; TARGET.jsonl says whose each is
    h5, parquet, npz   one file, as embed merge writes it

    One export at a time to a TARGET; workers and compactions may run beside it.
    """
    from embed.export.export import ExportRequest
    from embed.export.export import export as export_to

    default = os.environ.get("CHROMADB_URL") if to == "chroma" else None
    root, target = _store_and("TARGET", words, default)
    with click.progressbar(
        length=0, label="exporting", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        result = export_to(to, target, ExportRequest(root, **how), progress)
    if as_json:
        print_json(asdict(result))
        return
    verb = "would be added" if result.dry_run else "added"
    click.echo(
        f"{result.target}: {result.added:,} of {plural(result.vectors, 'vector')} {verb} in "
        f"{result.seconds:.1f} s."
    )


def _store_and(what: str, words: tuple[str, ...], default: str | None = None) -> tuple[str, str]:
    """Tell STORE from the word that follows it; FSQUEUE_STORE and `default` may stand for them."""
    preset, rest = os.environ.get("FSQUEUE_STORE"), list(words)
    is_first = len(rest) == 2 or (rest and (not preset or (default and _is_store(rest[0]))))
    root = rest.pop(0) if is_first else preset
    other = rest or ([default] if default else [])
    if not root or len(other) != 1:
        raise UsageError(f"STORE and {what} are needed, in this order. See --help.")
    return root, other[0]


def _is_store(path: str) -> bool:
    return os.path.isfile(f"{path}/store.json")


def _as_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON; of a hit that is text, where it stands in its document."""
    facts = asdict(answer)
    for hit, row in zip(answer.hits, facts["hits"], strict=True):
        if hit.begin >= 0:
            document, _, chunk = hit.record.rpartition("#")
            row |= {"document": document, "chunk": int(chunk), "end": hit.end}
        else:
            del row["begin"], row["text"]
    return facts


def _print_texts(answers: Sequence[Answer]) -> None:
    """Print where each hit stands, and how it begins."""
    for answer in answers:
        for number, (hit, score) in enumerate(zip(answer.hits, answer.scores, strict=True), 1):
            place = f"{hit.input}, characters {hit.begin:,}-{hit.end:,}" if hit.text else hit.input
            click.echo(_line(f"{number:>2}  {score:.4f}  {hit.record}  ({place})"))
            words = _line(" ".join(hit.text.split()))
            click.echo(f"    {words if len(words) <= SNIPPET else words[: SNIPPET - 1] + '…'}")


def _line(text: str) -> str:
    """Return a text as any terminal may show it, on one line."""
    return "".join(c if c.isprintable() else " " for c in text)


@click.group("store", context_settings=SETTINGS)
def store() -> None:
    """Look at a store of vectors, verify it, make few shards of many.

    A store is filled by claims: fsqueue plan embed POOL INPUT... --model M --store DIR
    """


@store.command("info", context_settings=SETTINGS)
@_store_argument
@json_option
def info(root: str, as_json: bool) -> None:
    """Say what STORE holds."""
    from embed.store.folders import spaces
    from embed.store.verify import info as info_of

    found = [info_of(collection, view) for collection, view in spaces(root)]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        click.echo(f"{root}: a store that holds nothing yet.")
        return
    header = "collection space width stored vectors duplicates shards MiB superseded".split()
    print_table(
        header,
        [
            (one.collection, one.space, one.width, one.stored, one.vectors, one.duplicates,
             one.shards, f"{one.bytes / 2**20:.1f}", one.superseded)
            for one in found
        ],
        left=2,
    )  # fmt: skip


@store.command("verify", context_settings=SETTINGS)
@_store_argument
def verify(root: str) -> None:
    """Read all of STORE, and say what is not as it was written; then the exit status is 1."""
    from embed.store.folders import spaces
    from embed.store.verify import verify as wrong_with

    found = list(spaces(root))
    wrong = [line for _, view in found for line in wrong_with(view)]
    for line in wrong:
        click.echo(line, err=True)
    if wrong:
        sys.exit(1)
    shards = sum(len(view.shards) for _, view in found)
    click.echo(
        f"{root}: {plural(shards, 'shard')} in {plural(len(found), 'space')}, as they were written."
    )


@store.command("compact", context_settings=SETTINGS)
@_store_argument
@click.option("--grace", type=Duration(), default=600.0, show_default=True,
              help="Remove what a shard stands for once it is there for so long.")  # fmt: skip
@json_option
def compact(root: str, grace: float, as_json: bool) -> None:
    """Make few large shards of many small ones, here and now.

    Readers and writers go on meanwhile. The same as a claim for storage workers: fsqueue plan
    compact POOL STORE, fsqueue work POOL --role storage.
    """
    from embed.store.compact import compact as compact_space
    from embed.store.folders import spaces

    if grace < 0:
        raise UsageError("--grace must be 0 or more.")
    done = {f"{name}/{view.space.name}": compact_space(view, grace_s=grace)
            for name, view in spaces(root)}  # fmt: skip
    if as_json:
        print_json({name: asdict(one) for name, one in done.items()})
        return
    for name, one in done.items():
        click.echo(
            f"{name}: {one.merged} shards became {one.made}; {one.duplicates} duplicates left out; "
            f"{one.removed} files removed, {one.waiting} will be once they are {grace:g} s old."
        )

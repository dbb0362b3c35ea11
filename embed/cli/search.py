"""`fsqueue embed search`: find nearest vectors in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from embed.cli.store_arguments import space_options, split_store
from fsqueue.cli.options import SETTINGS, json_option, print_json, print_table

if TYPE_CHECKING:
    from embed.query import Answer

SNIPPET: Final = 160
"""How many characters of a text are shown."""


@click.command(
    "search", context_settings=SETTINGS, short_help="Find the nearest vectors in a store."
)
@click.argument("words", metavar="STORE QUERY", nargs=-1)
@click.option("-k", "count", type=click.IntRange(1, 10_000), default=10, show_default=True,
              help="Number of neighbours.")  # fmt: skip
@space_options
@click.option(
    "--weights",
    metavar="MODEL",
    help="Where the model is now, if it was a folder that was moved: a folder, or a hub id.",
)
@json_option
def search_command(
    words: tuple[str, ...],
    count: int,
    collection: str,
    model: str | None,
    weights: str | None,
    as_json: bool,
) -> None:
    """Find the nearest vectors in STORE of each sequence in the FASTA file QUERY, or of a text.

    Neighbours are exact, by cosine. QUERY is embedded as the store's vectors were: for a store of
    texts it is a text, a text file, or - for standard input. A .npy file holds vectors, (queries,
    width).
    """
    from embed.query import search_store

    root, query = split_store("QUERY", words)
    answers = search_store(root, query, count, collection=collection, model=model, weights=weights)
    if as_json:
        print_json([_as_json(answer) for answer in answers])
    elif any(hit.text for answer in answers for hit in answer.hits):
        _print_texts(answers)
    else:
        _print_records(answers)


def _as_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON; a hit that is text has its place in the document."""
    facts = asdict(answer)
    for hit, row in zip(answer.hits, facts["hits"], strict=True):
        if hit.begin >= 0:
            document, _, chunk = hit.record.rpartition("#")
            row |= {"document": document, "chunk": int(chunk), "end": hit.end}
        else:
            del row["begin"], row["text"]
    return facts


def _print_records(answers: Sequence[Answer]) -> None:
    rows = [
        (answer.query, number, hit.record, hit.input, f"{score:.4f}", hit.length)
        for answer in answers
        for number, (hit, score) in enumerate(zip(answer.hits, answer.scores, strict=True), 1)
    ]
    print_table(("query", "rank", "record", "input", "cosine", "length"), rows, left=1)


def _print_texts(answers: Sequence[Answer]) -> None:
    """Print the place of each hit, and how its text begins."""
    for answer in answers:
        for number, (hit, score) in enumerate(zip(answer.hits, answer.scores, strict=True), 1):
            place = f"{hit.input}, characters {hit.begin:,}-{hit.end:,}" if hit.text else hit.input
            click.echo(_one_line(f"{number:>2}  {score:.4f}  {hit.record}  ({place})"))
            text = _one_line(" ".join(hit.text.split()))
            click.echo(f"    {text if len(text) <= SNIPPET else text[: SNIPPET - 1] + '…'}")


def _one_line(text: str) -> str:
    """Return a text on one line, without characters that could affect a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)

"""`fsqueue embed export`: copy a store's vectors to a database or file."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Final

import click

from embed.cli.store_arguments import space_options, split_store
from fsqueue.cli.options import SETTINGS, json_option, plural, print_json

TARGETS: Final = ("lancedb", "chroma", "faiss", "h5", "parquet", "npz")
"""The keys of `embed.export.export_space.TARGETS`, which is not imported for --help."""


@click.command("export", context_settings=SETTINGS, short_help="Copy a store's vectors elsewhere.")
@click.argument("words", metavar="STORE TARGET", nargs=-1)
@click.option("--to", required=True, type=click.Choice(TARGETS), help="Kind of target.")
@space_options
@click.option("--name", help="Name of the table or collection at TARGET. Default: as in STORE.")
@click.option(
    "--index",
    help="faiss: a factory string, such as IVF4096,Flat or HNSW32. lancedb: IVF_FLAT, IVF_PQ, "
    "IVF_SQ, IVF_HNSW_PQ or IVF_HNSW_SQ. Default: none; every vector is compared.",
)
@click.option("--dry-run", is_flag=True, help="Only count the vectors that would be added.")
@json_option
def export_command(
    words: tuple[str, ...],
    to: str,
    collection: str,
    model: str | None,
    name: str | None,
    index: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Add the vectors of STORE to TARGET, except those that are there already.

    \b
    lancedb  a database: a directory, or anything that lancedb.connect() takes
    chroma   a database: a directory, or a server's URL (default: CHROMADB_URL)
    faiss    an index of unit vectors, flat without --index; TARGET.jsonl holds their records
    h5, parquet, npz   one file, as embed merge writes it

    Run one export at a time to a TARGET; workers and compactions may run meanwhile.
    """
    from embed.export.export_space import ExportRequest, export_space

    default = os.environ.get("CHROMADB_URL") if to == "chroma" else None
    root, target = split_store("TARGET", words, default)
    request = ExportRequest(
        root=root, collection=collection, model=model, name=name, dry_run=dry_run, index=index
    )
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=0, label="exporting", file=sys.stderr, hidden=hidden) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        result = export_space(to, target, request, progress)
    if as_json:
        print_json(asdict(result))
        return
    verb = "would be added" if result.dry_run else "added"
    click.echo(
        f"{result.target}: {result.added:,} of {plural(result.vectors, 'vector')} {verb} in "
        f"{result.seconds:.1f} s."
    )

"""`fsqueue embed merge`: join a pool's outputs into one file."""

from __future__ import annotations

from dataclasses import asdict

import click

from embed.options import FORMATS
from fsqueue import UsageError
from fsqueue.cli.options import (
    SETTINGS,
    force_option,
    json_option,
    plural,
    print_json,
    split_pool,
    trust_option,
)


@click.command(
    "merge", context_settings=SETTINGS, short_help="Join a pool's outputs into one file."
)
@click.argument("words", nargs=-1, metavar="POOL OUT")
@trust_option
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="Default: by the ending of OUT, else as planned.",
)
@click.option(
    "--output-dtype",
    type=click.Choice(["float32", "float16"]),
    help="Precision of the file. Default: as planned, else float32.",
)
@click.option("--model", help="Model to merge, by its name or kind, if the pool has several.")
@click.option(
    "--plan",
    "plans",
    type=int,
    multiple=True,
    metavar="N",
    help="Merge the table of this plan, if a model has several; twice: pair two of them.",
)
@click.option(
    "--option",
    "chosen",
    multiple=True,
    metavar="NAME=VALUE",
    help="Merge the table that was planned with this option, such as pooling=cls. Repeatable.",
)
@force_option
@click.option("--partial", is_flag=True, help="Merge what is done, and report what is missing.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only check whether this could be merged once all is done; write nothing.",
)
@json_option
def merge_command(
    words: tuple[str, ...],
    format: str | None,
    output_dtype: str | None,
    model: str | None,
    plans: tuple[int, ...],
    chosen: tuple[str, ...],
    force: bool,
    partial: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Join a pool's outputs in input order into the file OUT (esm, virnucpro: the folder OUT).

    Every planned sequence must be there, once. The outputs of two models are paired by id, DNA
    first; sequences without a partner are listed in OUT.unmatched.tsv.

    \b
    safetensors  embeddings (a pair: data), ids; embed.read() reads it
    npz          embeddings, ids
    h5           a dataset for each id
    parquet      columns id, embedding
    esm          a folder with a .pt file for each sequence, as extract.py writes
    virnucpro    STEM_ESM.pt, STEM_DNABERT_S.pt, STEM_merged.pt, each with its .done
    """
    from embed.outputs.merge import MergeRequest, merge

    pool, rest = split_pool(words)
    if len(rest) != 1:
        raise UsageError("give one OUT: fsqueue embed merge POOL OUT")
    options = dict(_pair(text) for text in chosen)
    request = MergeRequest(
        format, model, plans, output_dtype, options, partial=partial, force=force, dry_run=dry_run
    )
    result = merge(pool, rest[0], request)
    if dry_run:
        click.echo(f"{rest[0]}: could be merged, of {' and '.join(result.models)}")
        return
    for note in result.notes:
        click.echo(f"fsqueue: {note}", err=True)
    if as_json:
        print_json(asdict(result))
        return
    models = " and ".join(result.models)
    files = result.files[0] if len(result.files) == 1 else f"{len(result.files)} files in {rest[0]}"
    click.echo(
        f"{plural(result.rows, 'sequence')} x {result.width:,} numbers, of {models}: {files}"
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option {text}: is not NAME=VALUE, such as pooling=cls.")
    return name.replace("-", "_"), value

"""`fsqueue embed prepare`: cut contigs into chunks and translate them, for two models."""

from __future__ import annotations

import os
from dataclasses import asdict

import click

from fsqueue.cli.options import SETTINGS, json_option, print_json


@click.command("prepare", context_settings=SETTINGS)
@click.argument("contigs", type=click.Path())
@click.option("-o", "--out", metavar="DIR", help="Output directory. Default: that of CONTIGS.")
@click.option("--chunk", default=500, show_default=True, help="Bases in a chunk.")
@click.option(
    "--split",
    type=int,
    metavar="N",
    help="Also divide both files into files of N sequences, as VirNucPro does (10000).",
)
@json_option
def prepare_command(
    contigs: str, out: str | None, chunk: int, split: int | None, as_json: bool
) -> None:
    """Cut contigs into chunks, and translate each in six frames.

    Writes X_nucleotide.fa and X_protein.faa, which hold the same ids in the same order: one for
    each frame of a chunk without a stop.
    """
    from embed.inputs.contigs import prepare, split_file

    result = prepare(contigs, out or os.path.dirname(contigs) or ".", chunk)
    if split is not None:
        for path in (result.nucleotides, result.proteins):
            split_file(path, os.path.splitext(path)[0], split)
    if as_json:
        print_json(asdict(result))
        return
    click.echo(
        f"{result.contigs:,} contigs, {result.chunks:,} chunks, {result.frames:,} open frames; "
        f"{result.closed:,} chunks have none."
    )
    click.echo(f"{result.nucleotides}\n{result.proteins}")

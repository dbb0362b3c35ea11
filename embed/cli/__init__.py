"""`fsqueue embed`: prepare inputs, merge outputs, embed one file. The only door to click.

Registered under the entry-point group `fsqueue.commands`. What a command needs is imported when it
is called.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from typing import Any

import click

from embed.cli.store import export, search, store
from embed.options import DTYPE_TAGS, FORMATS, OPTIONS
from fsqueue import FsqueueError, Option, UsageError
from fsqueue.cli.options import SETTINGS, json_option, print_json, split_pool, trust_option


@click.group("embed", context_settings=SETTINGS)
def embed() -> None:
    """Prepare sequences, merge what pools embedded, or embed one file without a pool.

    \b
    From contigs to the features of two models:
      fsqueue embed prepare contigs.fa -o prepared/
      fsqueue plan embed pool/ prepared/contigs_nucleotide.fa --model zhihan1996/DNABERT-S
      fsqueue plan embed pool/ prepared/contigs_protein.faa --model facebook/esm2_t36_3B_UR50D
      fsqueue run pool/
      fsqueue embed merge pool/ features.safetensors
    """


@embed.command("prepare", context_settings=SETTINGS)
@click.argument("contigs", type=click.Path())
@click.option("-o", "--out", metavar="DIR", help="Where to write. Default: beside CONTIGS.")
@click.option("--chunk", default=500, show_default=True, help="Bases of a chunk.")
@click.option(
    "--split",
    type=int,
    metavar="N",
    help="Divide both files besides, N sequences to a file, as VirNucPro does (10000).",
)
@json_option
def prepare(contigs: str, out: str | None, chunk: int, split: int | None, as_json: bool) -> None:
    """Cut contigs into chunks, and translate each in six frames.

    Writes X_nucleotide.fa and X_protein.faa, which hold the same ids in the same order: one for
    each frame of a chunk without a stop.
    """
    from embed.inputs import contigs as module

    result = module.prepare(contigs, out or os.path.dirname(contigs) or ".", chunk)
    if split is not None:
        for path in (result.nucleotides, result.proteins):
            module.split(path, os.path.splitext(path)[0], split)
    if as_json:
        print_json(asdict(result))
        return
    click.echo(
        f"{result.contigs:,} contigs, {result.chunks:,} chunks, {result.frames:,} open frames; "
        f"{result.closed:,} chunks have none."
    )
    click.echo(f"{result.nucleotides}\n{result.proteins}")


@embed.command("merge", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL OUT")
@trust_option
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="Default: what OUT's name says, else what was planned.",
)
@click.option("--model", help="Which, if the pool has several; by its name or kind.")
@click.option("--partial", is_flag=True, help="Merge what is done, and say what is not.")
@json_option
def merge(words: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Join a pool's outputs in input order into the file OUT (virnucpro: the folder OUT).

    Every planned sequence must be there, once. The outputs of two models are paired by id, DNA
    first; what has no partner is listed in OUT.unmatched.tsv.

    \b
    safetensors  embeddings (a pair: data), ids; embed.read() reads it
    npz          embeddings, ids
    h5           a dataset per id
    parquet      columns id, embedding
    virnucpro    STEM_ESM.pt, STEM_DNABERT_S.pt, STEM_merged.pt, each with its .done
    """
    from embed.outputs.merge import merge as merge_pool

    pool, rest = split_pool(words)
    if len(rest) != 1:
        raise UsageError("one OUT is needed: fsqueue embed merge POOL OUT")
    result = merge_pool(pool, rest[0], **how)
    for note in result.notes:
        click.echo(f"fsqueue: {note}", err=True)
    if as_json:
        print_json(asdict(result))
        return
    models = " and ".join(result.models)
    files = result.files[0] if len(result.files) == 1 else f"{len(result.files)} files in {rest[0]}"
    click.echo(f"{result.rows:,} sequences x {result.width:,} numbers, of {models}: {files}")


def _planning_options(command: Any) -> Any:
    """Add the options of `fsqueue plan embed`, in their order, but those of pools."""
    for option in reversed(OPTIONS):
        if option.name != "checkpoint_seconds":
            flag = "--" + option.name.replace("_", "-")
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if option.default is False else flag,
                type=click.Choice(option.choices) if option.choices else _type(option),
                default=option.default,
                required=option.required,
                show_default=option.default is not None,
                help=option.help,
            )(command)
    return command


def _type(option: Option) -> type:
    return str if option.default is None else type(option.default)


@embed.command("file", context_settings=SETTINGS)
@click.argument("path", metavar="FILE", type=click.Path())
@click.option("-o", "--out", help="Where to write. Default: FILE's name with the format's ending.")
@_planning_options
def file(path: str, out: str | None, **options: Any) -> None:
    """Embed one FASTA file here and now, without a pool."""
    from embed.single_file import Said, embed_file

    out = out or f"{os.path.splitext(path.removesuffix('.gz'))[0]}.{options['format']}"
    hidden = not sys.stderr.isatty()
    notes: list[str] = []
    with click.progressbar(length=0, label="embedding", file=sys.stderr, hidden=hidden) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        said = Said(progress, notes.append)  # told below the bar, not into its line
        count = embed_file(path, out, {**options, "checkpoint_seconds": 60}, said)
    for note in notes:
        click.echo(f"fsqueue: {note}", err=True)
    click.echo(f"{count:,} sequences: {out}")


@embed.command("calibrate", context_settings=SETTINGS)
@click.argument("model")
@click.option("--seconds", type=click.FloatRange(1, 600), default=20.0, show_default=True,
              help="Measure about so long, loading apart.")  # fmt: skip
@click.option("--dtype", type=click.Choice(list(DTYPE_TAGS)), default="float32", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True,
              help="Threads on a CPU, as planned.")  # fmt: skip
@json_option
def calibrate(model: str, seconds: float, as_json: bool, **options: Any) -> None:
    """Measure this machine's real speed with MODEL, and print the weight to plan with.

    Run it once on every kind of machine: CUDA_VISIBLE_DEVICES says which GPU is measured. Nothing
    is changed: a weight counts where you type it.
    """
    from embed.handlers.calibrate import calibrate as measure

    given = {option.name: option.default for option in OPTIONS} | {"model": model} | options
    found = measure(given, seconds)
    line = f"--weight {shlex.quote(f'{found.device}={found.weight:g}')}"
    if as_json:
        print_json(asdict(found) | {"weight": found.weight, "type": line})
        return
    per_s = found.sequences / found.seconds
    click.echo(
        f"{found.model} ({found.dtype}) on {found.device}: {per_s:,.4g} sequences and "
        f"{found.residues / found.seconds:,.4g} residues a second, in {found.sequences:,} "
        f"sequences of {found.residues / found.sequences:,.0f} residues; loaded in "
        f"{found.load_seconds:.1f} s."
    )
    click.echo(f"weight {found.weight:g}, where an RTX 3090 has 1.0 by estimate. Plan with:")
    click.echo(f"  fsqueue plan embed POOL INPUT... --model {shlex.quote(model)} {line}")


for command in (search, export, store):
    embed.add_command(command)


def main() -> None:
    """Run `python -m embed FILE`."""
    try:
        file(prog_name="python -m embed")
    except FsqueueError as error:
        click.echo(f"embed: {error}", err=True)
        sys.exit(error.exit_status)

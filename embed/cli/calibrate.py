"""`fsqueue embed calibrate`: measure a machine's weight."""

from __future__ import annotations

import shlex
from dataclasses import asdict

import click

from embed.options import DTYPE_TAGS, OPTIONS
from fsqueue.cli.options import SETTINGS, json_option, print_json


@click.command(
    "calibrate", context_settings=SETTINGS, short_help="Measure this machine's speed with a model."
)
@click.argument("model")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    default=20.0,
    show_default=True,
    help="Time to measure, after loading.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPE_TAGS)),
    default="float32",
    show_default=True,
    help="Precision, as in the plan.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads, as in the plan.",
)
@json_option
def calibrate_command(model: str, seconds: float, dtype: str, threads: int, as_json: bool) -> None:
    """Measure this machine's speed with MODEL, and print the weight to plan with.

    Run it once on every kind of machine; CUDA_VISIBLE_DEVICES selects the GPU. Nothing is changed:
    a weight is used where you type it.
    """
    from embed.handlers.calibrate import calibrate

    options = {option.name: option.default for option in OPTIONS}
    result = calibrate(options | {"model": model, "dtype": dtype, "threads": threads}, seconds)
    weight_option = f"--weight {shlex.quote(f'{result.device}={result.weight:g}')}"
    if as_json:
        print_json(asdict(result) | {"weight": result.weight, "type": weight_option})
        return
    per_s = result.sequences / result.seconds
    click.echo(
        f"{result.model} ({result.dtype}) on {result.device}: {per_s:,.4g} sequences and "
        f"{result.residues / result.seconds:,.4g} residues a second, in {result.sequences:,} "
        f"sequences of {result.residues / result.sequences:,.0f} residues; loaded in "
        f"{result.load_seconds:.1f} s."
    )
    click.echo(f"weight {result.weight:g}, where an RTX 3090 is estimated at 1.0. Plan with:")
    click.echo(f"  fsqueue plan embed POOL INPUT... --model {shlex.quote(model)} {weight_option}")

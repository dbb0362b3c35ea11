"""`fsqueue embed calibrate`: measure a machine's weight, and how many workers suit a device."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from embed.options import DTYPE_TAGS, OPTIONS
from fsqueue.cli.options import SETTINGS, json_option, note, plural, print_json

if TYPE_CHECKING:
    from embed.handlers.calibrate import Calibration, SideBySide

WORKERS_MAX: Final = 48
BUSY: Final = 0.5
"""With so much load per core, what else runs here spoils a measurement."""
EPILOG: Final = """\b
Examples:
  fsqueue embed calibrate facebook/esm2_t33_650M_UR50D
  CUDA_VISIBLE_DEVICES=0 fsqueue embed calibrate facebook/esm2_t6_8M_UR50D --workers 2
  CUDA_VISIBLE_DEVICES= fsqueue embed calibrate zhihan1996/DNABERT-S --workers 8
"""


@click.command(
    "calibrate",
    context_settings=SETTINGS,
    short_help="Measure this machine's speed with a model.",
    epilog=EPILOG,
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
    "--workers",
    type=click.IntRange(1, WORKERS_MAX),
    default=1,
    show_default=True,
    metavar="N",
    allow_from_autoenv=False,
    help="Measure one worker, then N at once on the same GPU (or on the CPU), and print which is "
    "better.",
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
    help="CPU threads of each worker, as in the plan.",
)
@json_option
def calibrate_command(
    model: str, seconds: float, workers: int, dtype: str, threads: int, as_json: bool
) -> None:
    """Measure this machine's speed with MODEL, and print the weight to plan with.

    Run it once on every kind of machine; CUDA_VISIBLE_DEVICES selects the GPU. Nothing is changed:
    a weight is used where you type it.
    """
    from embed.handlers.calibrate import calibrate, side_by_side

    options = {option.name: option.default for option in OPTIONS}
    options |= {"model": model, "dtype": dtype, "threads": threads}
    busy = how_busy()
    if workers == 1:
        result = calibrate(options, seconds)
        _warn_if(busy)
        if as_json:
            print_json(facts(result) | {"type": _weight_option(result.device, result.weight)})
            return
        click.echo(_line(result))
        _show_plan(model, result, result.weight)
        return

    def show_one(one: Calibration) -> None:
        if not as_json:
            click.echo(_line(one))

    found = side_by_side(options, seconds, workers, on_one=show_one)
    _warn_if(busy)
    if as_json:
        print_json(
            {
                "one": facts(found.one),
                "several": [facts(each) for each in found.several],
                "gain": found.gain,
                "best_workers": found.best,
                "weight": found.weight,
                "type": _run_command(found),
            }
        )
        return
    _show_several(found)
    _show_plan(model, found.one, found.weight, _more_options(found))
    click.echo(f"  {_run_command(found)}")


def facts(result: Calibration) -> dict[str, Any]:
    """Return a measurement as a document."""
    return asdict(result) | {"weight": result.weight}


def how_busy() -> str:
    """Return what to know about other processes that take CPU time from the measurement."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if load < BUSY * cores:
        return ""
    return (
        f"this machine was busy already (load {load:.1f}, {plural(cores, 'core')}): what was "
        f"measured is too slow, and may not be comparable. Measure again when it is idle."
    )


def _warn_if(busy: str) -> None:
    if busy:
        note(busy)


def _line(result: Calibration) -> str:
    return (
        f"{result.model} ({result.dtype}) on {result.device}: {result.sequences_per_s:,.4g} "
        f"sequences and {result.residues_per_s:,.4g} residues a second, in {result.sequences:,} "
        f"sequences of {result.residues / max(1, result.sequences):,.0f} residues; loaded in "
        f"{result.load_seconds:.1f} s."
    )


def _show_several(found: SideBySide) -> None:
    each = ", ".join(f"{one.residues_per_s:,.4g}" for one in found.several)
    total = sum(one.sequences_per_s for one in found.several)
    residues = sum(one.residues_per_s for one in found.several)
    count = len(found.several)
    click.echo(
        f"{count} workers at once: {total:,.4g} sequences and {residues:,.4g} residues a second "
        f"together ({each})."
    )
    if found.best > 1:
        click.echo(f"{count} are {found.gain:.2f} times as fast as one: start {count} here.")
    else:
        click.echo(
            f"{count} are {found.gain:.2f} times as fast as one, which is not worth their memory: "
            f"start one here."
        )


def _show_plan(model: str, one: Calibration, weight: float, more: str = "") -> None:
    click.echo(f"weight {weight:g}, where an RTX 3090 is estimated at 1.0. Plan with:")
    click.echo(
        f"  fsqueue plan embed POOL INPUT... --model {shlex.quote(model)}{more} "
        f"{_weight_option(one.device, weight)}"
    )


def _weight_option(device: str, weight: float) -> str:
    return f"--weight {shlex.quote(f'{device}={weight:g}')}"


def _more_options(found: SideBySide) -> str:
    if found.best == 1:
        return ""
    return f" --per-gpu {found.best}" if found.one.on_gpu else f" --gpus cpux{found.best}"


def _run_command(found: SideBySide) -> str:
    if found.one.on_gpu:
        return f"fsqueue run POOL{f' --per-gpu {found.best}' if found.best > 1 else ''}"
    return f"fsqueue run POOL --workers {found.best}"

"""`fsqueue slurm`: submit arrays of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    TrailingCommand,
    json_option,
    note,
    plural,
    pool_argument,
    print_json,
)

EPILOG = """\b
Examples:
  fsqueue slurm pool/ -- -p gpu --time=4:00:00 --mem=16G
  fsqueue slurm pool/ --array 64 --throttle 16 -- -A lab -p preemptible
  fsqueue slurm pool/ --merge "fsqueue embed merge pool/ all.safetensors"
  fsqueue slurm pool/ --dry-run > worker.sbatch

\b
A worker leaves when nothing is left, or before its time ends; then its job is
requeued while work remains. Preemption, time limits and lost nodes cost no
attempt. To write your own script, start from scripts/worker.sbatch.
"""


@click.command("slurm", cls=TrailingCommand, context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--array",
    "workers",
    type=click.IntRange(1),
    metavar="N",
    help="Number of workers, assigned to the spools in turn. Default: one per spool.",
)
@click.option("--gpus", metavar="SPEC", help="One worker on each of these: 4090x8,3090x4.")
@click.option(
    "--throttle",
    type=click.IntRange(1),
    metavar="N",
    help="Number of tasks of an array that may run at a time.",
)
@click.option(
    "-o",
    "--output",
    metavar="PATTERN",
    help="Log file of each task, in sbatch's notation. Default: POOL/events/slurm-%A_%a.log",
)
@click.option(
    "--start-delay",
    type=Duration(),
    help="Spread the starts over this long. Default: 0.1s per worker, at most 60s.",
)
@click.option(
    "--merge",
    metavar="COMMAND",
    help="Run this in a job of its own after the workers have ended, if everything is done.",
)
@click.option("--dry-run", is_flag=True, help="Print the scripts; submit nothing.")
@json_option
def slurm(
    pool: Pool,
    workers: int | None,
    gpus: str | None,
    throttle: int | None,
    output: str | None,
    start_delay: float | None,
    merge: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit arrays of workers to SLURM: one array for each model of GPU.

    The tasks are workers, not claims: any number of them may run. Submitting again adds workers,
    and never repeats work. What follows -- is passed to sbatch.
    """
    from fsqueue.slurm.submit import PartlySubmitted, SubmitOptions, prepare, submit_all

    sbatch = click.get_current_context().meta.get("trailing", [])
    submission = prepare(
        pool,
        SubmitOptions(workers, gpus, throttle, output or "", start_delay, merge, sbatch),
    )
    for text in submission.notes:
        note(text)
    if dry_run:
        placeholders = [f"JOB{number}" for number in range(1, len(submission.arrays) + 1)]
        following = submission.merge_script(placeholders)
        return _print_scripts([*submission.scripts, *([following] if following else [])], as_json)
    try:
        submitted = submit_all(submission)
    except PartlySubmitted as error:
        note(f"submitted before that: {', '.join(error.jobs)}")
        raise
    if as_json:
        pairs = zip(submitted.jobs, submission.arrays, strict=True)
        arrays = [{"id": job} | asdict(array) for job, array in pairs]
        return print_json({"arrays": arrays, "merge": submitted.merge})
    for job, array in zip(submitted.jobs, submission.arrays, strict=True):
        count = plural(len(array.indices), "worker")
        click.echo(f"{job}: {count} on {array.model}, array {array.index_text}")
    if submitted.merge:
        click.echo(f"{submitted.merge}: the merge, after the workers have ended and all is done")
    return None


def _print_scripts(scripts: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({"scripts": scripts})
    else:
        click.echo("\n".join(scripts), nl=False)

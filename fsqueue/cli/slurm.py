"""`fsqueue slurm`: submit arrays of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    TrailingCommand,
    json_option,
    pool_argument,
    print_json,
)
from fsqueue.errors import FsqueueError, UsageError
from fsqueue.pool.settings import PoolDirectory, read_spool, spool_names
from fsqueue.scheduling.gpu_spec import parse_gpus
from fsqueue.slurm.arrays import Array, arrays_for, index_text, seats_for, this_cluster
from fsqueue.slurm.scripts import ScriptOptions, merge_script, submit, worker_script

EPILOG = """\b
Examples:
  fsqueue slurm pool/ -- -p gpu --time=4:00:00 --mem=16G
  fsqueue slurm pool/ --array 64 --throttle 16 -- -A lab -p preemptible
  fsqueue slurm pool/ --merge "fsqueue embed merge pool/ -o all.safetensors"
  fsqueue slurm pool/ --dry-run > worker.sbatch

\b
A worker leaves when nothing is left, or before its time ends; then its job is
requeued while work remains. Preemption, time limits and lost nodes cost no
attempt. For a script of your own: scripts/worker.sbatch.
"""


@click.command("slurm", cls=TrailingCommand, context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--array", "count", type=click.IntRange(1), metavar="N", help="Submit N workers, in turn for "
    "each spool. Default: one per spool."
)  # fmt: skip
@click.option("--gpus", metavar="SPEC", help="Submit a worker on each of these: 4090x8,3090x4.")
@click.option("--throttle", type=click.IntRange(1), metavar="N", help="Let N tasks of an array "
              "run at a time.")  # fmt: skip
@click.option("-o", "--output", metavar="PATTERN", help="Where tasks log, as sbatch has it. "
              "Default: POOL/events/slurm-%A_%a.log")  # fmt: skip
@click.option("--start-delay", type=Duration(), help="Spread the starts over so long. Default: "
              "0.1s per worker, at most 60s.")  # fmt: skip
@click.option("--merge", metavar="COMMAND", help="Then run this in a job of its own, if all is "
              "done when the workers have ended.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the scripts; submit nothing.")
@json_option
def slurm(pool: PoolDirectory, **given: Any) -> None:
    """Submit arrays of workers to SLURM: one array for each model of GPU.

    The tasks are workers, not claims: any number of them may run. Submitting again adds workers,
    and never doubles work. What follows -- is sbatch's.
    """
    options = click.get_current_context().meta.get("trailing", [])
    _refuse(options, given)
    arrays = _arrays(pool, given["count"], given["gpus"])
    workers = sum(len(array.indices) for array in arrays)
    delay_s = min(60.0, 0.1 * workers) if given["start_delay"] is None else given["start_delay"]
    manner = ScriptOptions(options, given["output"] or "", given["throttle"], delay_s)
    scripts = [worker_script(pool, array, manner) for array in arrays]
    if given["dry_run"]:
        if given["merge"]:
            jobs = [f"JOB{number}" for number in range(1, len(arrays) + 1)]
            scripts.append(merge_script(pool, jobs, given["merge"], manner))
        return _print_scripts(scripts, given["as_json"])
    jobs = _submit_all(scripts)
    merge = submit(merge_script(pool, jobs, given["merge"], manner)) if given["merge"] else None
    _report(dict(zip(jobs, arrays, strict=True)), merge, given["as_json"])


def _refuse(options: Sequence[str], given: dict[str, Any]) -> None:
    if given["count"] is not None and given["gpus"] is not None:
        raise UsageError("--array and --gpus both say how many workers; give one of them.")
    for word in options:
        if word.partition("=")[0] in ("-a", "--array", "--wrap"):
            raise UsageError(f"{word} after -- is not for sbatch here: say --array N before it.")


def _arrays(pool: PoolDirectory, count: int | None, gpus: str | None) -> list[Array]:
    spools = [read_spool(pool, name) for name in spool_names(pool)]
    specs = parse_gpus(gpus) if gpus is not None else None
    cluster = this_cluster()
    seats = seats_for(spools, count=count, specs=specs)
    arrays, absent = arrays_for(seats, len(spools), cluster)
    types = ", ".join(sorted(cluster.gpu_types or ())) or "none"
    if not arrays:
        raise UsageError(
            f"no node here has an {absent[0]}; sinfo shows these types of GPU: {types}. Name those "
            f"to use: --gpus SPEC, or --gpus cpu."
        )
    for model in absent:
        _note(f"no node here has an {model} (sinfo shows: {types}); others will do its work.")
    if cluster.gpu_types is None:
        _note("sinfo does not answer; the names of the GPU types are guessed.")
    return arrays


def _note(text: str) -> None:
    click.echo(f"fsqueue: {text}", err=True)


def _submit_all(scripts: Sequence[str]) -> list[str]:
    jobs: list[str] = []
    for script in scripts:
        try:
            jobs.append(submit(script))
        except FsqueueError as error:
            if jobs:
                _note(f"submitted before that: {', '.join(jobs)}")
            raise error
    return jobs


def _print_scripts(scripts: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({"scripts": scripts})
    else:
        click.echo("\n".join(scripts), nl=False)


def _report(jobs: dict[str, Array], merge: str | None, as_json: bool) -> None:
    if as_json:
        facts = [{"id": job} | asdict(array) for job, array in jobs.items()]
        return print_json({"arrays": facts, "merge": merge})
    for job, array in jobs.items():
        indices = index_text(array.indices)
        click.echo(f"{job}: {len(array.indices)} workers on {array.model}, array {indices}")
    if merge:
        click.echo(f"{merge}: the merge, once they have ended and all is done")

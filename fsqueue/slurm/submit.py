"""Prepare and submit arrays of workers for a pool, and a job that follows them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from fsqueue.errors import ExitStatus, FsqueueError, UsageError
from fsqueue.pool.settings import PoolDirectory, read_spool, spool_names
from fsqueue.scheduling.gpu_spec import parse_gpus
from fsqueue.slurm.arrays import Array, arrays_for, this_cluster, workers_for
from fsqueue.slurm.scripts import ScriptOptions, merge_script, submit, worker_script

DELAY_PER_WORKER_S = 0.1
DELAY_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """What can be chosen about a submission."""

    workers: int | None = None
    """None: one per spool."""
    gpus: str | None = None
    """A --gpus SPEC: one worker on each of these."""
    throttle: int | None = None
    """How many tasks of an array may run at a time."""
    output: str = ""
    """Where tasks log, in sbatch's notation."""
    start_delay_s: float | None = None
    """Spread the starts over this long; None: 0.1 s per worker, at most 60 s."""
    merge: str | None = None
    """A command to run in a job of its own once all is done."""
    sbatch: Sequence[str] = ()
    """Options for sbatch, which win over those written here."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What would be submitted: arrays with their scripts, and notes about what was guessed."""

    pool: PoolDirectory
    arrays: tuple[Array, ...]
    scripts: tuple[str, ...]
    notes: tuple[str, ...]
    options: ScriptOptions
    merge: str | None

    def merge_script(self, jobs: Sequence[str]) -> str | None:
        """Return the script of the job that follows these."""
        if self.merge is None:
            return None
        return merge_script(self.pool, jobs, self.merge, self.options)


@dataclass(frozen=True, slots=True)
class Submitted:
    """The SLURM job ids: one per array, and that of the merge."""

    jobs: tuple[str, ...]
    merge: str | None


class PartlySubmitted(FsqueueError):
    """sbatch refused a script after it had accepted others: `jobs`."""

    def __init__(self, message: str, jobs: Sequence[str]) -> None:
        super().__init__(message)
        self.jobs = tuple(jobs)


def prepare(pool: PoolDirectory, options: SubmitOptions) -> Submission:
    """Decide the arrays and write their scripts; submit nothing.

    Raises UsageError for options that contradict each other or a cluster without such GPUs.
    """
    if options.workers is not None and options.gpus is not None:
        raise UsageError("--array and --gpus both give the number of workers; use one of them.")
    for word in options.sbatch:
        if word.partition("=")[0] in ("-a", "--array", "--wrap"):
            raise UsageError(f"{word} cannot be passed to sbatch here; put --array N before the --")
    if options.merge is not None:
        check_merge(options.merge)
    arrays, notes = _arrays(pool, options)
    workers = sum(len(array.indices) for array in arrays)
    delay_s = options.start_delay_s
    if delay_s is None:
        delay_s = min(DELAY_MAX_S, DELAY_PER_WORKER_S * workers)
    how = ScriptOptions(options.sbatch, options.output, options.throttle, delay_s)
    scripts = tuple(worker_script(pool, array, how) for array in arrays)
    return Submission(pool, tuple(arrays), scripts, tuple(notes), how, options.merge)


def check_merge(command: str) -> None:
    """Raise UsageError if the command of the merge would be refused when its job runs.

    R49 That is found out at submission, not after all GPU time is spent: its shell syntax, and if
        it is a command of fsqueue, whether that command exists and accepts it (`--dry-run`).
    """
    bash = shutil.which("bash")
    if bash is not None:
        parsed = subprocess.run([bash, "-n", "-c", command], capture_output=True, text=True)
        if parsed.returncode != 0:
            raise UsageError(f"--merge {command!r}: {_last_line(parsed.stderr)}")
    words = _first_command(command)
    if not words or os.path.basename(words[0]) != "fsqueue":
        return
    about = _fsqueue(*words[1:], "--help")
    if about.returncode != 0:
        raise UsageError(f"--merge {command!r} would be refused: {_last_line(about.stderr)}")
    if "--dry-run" in about.stdout:
        tried = _fsqueue(*words[1:], "--dry-run")
        if tried.returncode in (ExitStatus.USAGE, ExitStatus.NOT_SUPPORTED):
            raise UsageError(f"--merge {command!r} would be refused: {_last_line(tried.stderr)}")


def _first_command(command: str) -> list[str]:
    """Return the words of the first simple command; none if the shell would change them."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(takewhile(lambda word: not set(word) <= set("();<>|&"), lexer))
    return [] if set("$`*?[{~") & set("".join(words)) else words


def _fsqueue(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsqueue", *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines() or ["no reason was given"]
    return lines[-1].removeprefix("fsqueue: ").removeprefix("Error: ")


def submit_all(submission: Submission) -> Submitted:
    """Submit every array, then the merge. Raises PartlySubmitted if one is refused midway."""
    jobs: list[str] = []
    try:
        for script in submission.scripts:
            jobs.append(submit(script))
        following = submission.merge_script(jobs)
        merge = submit(following) if following is not None else None
    except FsqueueError as error:
        if jobs:
            raise PartlySubmitted(str(error), jobs) from error
        raise
    return Submitted(tuple(jobs), merge)


def _arrays(pool: PoolDirectory, options: SubmitOptions) -> tuple[list[Array], list[str]]:
    spools = [read_spool(pool, name) for name in spool_names(pool)]
    specs = parse_gpus(options.gpus) if options.gpus is not None else None
    cluster = this_cluster()
    workers = workers_for(spools, count=options.workers, specs=specs)
    arrays, absent = arrays_for(workers, len(spools), cluster)
    types = ", ".join(sorted(cluster.gpu_types or ())) or "none"
    if not arrays:
        raise UsageError(
            f"no node of this cluster has an {absent[0]}; sinfo shows these types of GPU: {types}. "
            f"Name the ones to use: --gpus SPEC, or --gpus cpu."
        )
    notes = [
        f"no node of this cluster has an {model} (sinfo shows: {types}); others will do its work."
        for model in absent
    ]
    if cluster.gpu_types is None:
        notes.append("sinfo does not answer; the names of the GPU types are guessed.")
    return arrays, notes

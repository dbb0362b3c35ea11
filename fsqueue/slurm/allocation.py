"""SLURM as a worker sees it: its own job, when that ends, and what squeue says about other jobs.

Nothing here is needed for correctness, and a worker waits for none of it: a command is started, and
its answer is used once it is there. Where SLURM is down or absent, everything works as without it.

What SLURM does (seen with 22.05) that its manual does not make clear:

* A job is called `17_3` here, ARRAY_TASK. SLURM_JOB_ID is not enough: the task split off last has
  the array's own number, which then means the whole array.
* A requeued job keeps its name. SLURM_RESTART_COUNT distinguishes its runs; it is raised as soon as
  SLURM decides to requeue, while processes of the old run may still exist.
* `scontrol requeue` would also bring back a job that was cancelled a moment ago.
* With the controller down, commands take nine seconds to fail.
* squeue computes the time left of a job by the clock of the host on which squeue runs, as does any
  reader of SLURM_JOB_END_TIME. A job's batch process knows better: it is as old as the job.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

VARIABLES: Final = (
    "SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_RESTART_COUNT SLURM_CLUSTER_NAME "
    "SLURM_JOB_PARTITION SLURMD_NODENAME SLURM_JOB_GPUS"
).split()
GRACE_S: Final = 60.0
"""How long before its end a worker leaves an allocation: to finish a batch, save, and put back."""
CLOCK_OFF_S: Final = 300.0
"""A clock this far from the age of the batch process is wrong; a prolog takes less."""
ANSWER_S: Final = 20.0
ANSWER_MAX: Final = 4 << 20

_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_TIME_LEFT: Final = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a job: its name in squeue, and how often it was requeued before."""

    name: str
    restarts: int = 0
    cluster: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Job | None:
        """Return the job that a worker's facts (see `facts_of`) describe, if any."""

        def number(name: str) -> str:
            text = facts.get(name)
            return text if isinstance(text, str) and _NUMBER.fullmatch(text) else ""

        array, task = number("slurm_array_job_id"), number("slurm_array_task_id")
        name = f"{array}_{task}" if array and task else number("slurm_job_id")
        restarts, cluster = number("slurm_restart_count"), facts.get("slurm_cluster_name")
        return cls(name, int(restarts or 0), str(cluster or "")) if name else None


def facts_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment's facts about this process's job; {} outside of jobs."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    return {name.lower(): environ[name] for name in VARIABLES if name in environ}


# ---- parsing output of its commands ----


def parse_time_left(text: str) -> float | None:
    """Return the seconds in `squeue --format=%L`: D-HH:MM:SS and shorter.

    None for UNLIMITED, NOT_SET, N/A, and for INVALID, which squeue prints for a job whose end has
    passed by this host's clock.
    """
    if (match := _TIME_LEFT.fullmatch(text.strip())) is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """One job in squeue's list."""

    state: str
    restarts: int


def rows_command(jobs: Iterable[Job]) -> list[str]:
    """Return the command that lists these jobs, ended ones included."""
    names = ",".join(sorted({job.name for job in jobs}))
    columns = "JobArrayID:40,State:30,RestartCnt:12"
    return ["squeue", "--noheader", "--array", "--states=all", f"--jobs={names}",
            f"--Format={columns}"]  # fmt: skip


def parse_rows(text: str) -> dict[str, Row]:
    """Parse the output of `rows_command`, by job name."""
    rows = {}
    for words in map(str.split, text.splitlines()):
        if len(words) == 3 and _NUMBER.fullmatch(words[2]):
            rows[words[0]] = Row(words[1], int(words[2]))
    return rows


def left_by_environ(environ: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until SLURM_JOB_END_TIME, which SLURM sets since 23.02.

    None if it has passed: then this host's clock is wrong, because the job still runs.
    """
    ends = environ.get("SLURM_JOB_END_TIME", "")
    left = float(ends) - now if _NUMBER.fullmatch(ends) else 0.0
    return left if left > 0 else None


def limit_by_environ(environ: Mapping[str, str]) -> float | None:
    """Return this job's time limit in seconds, if SLURM set its start and end times."""
    ends, begins = environ.get("SLURM_JOB_END_TIME", ""), environ.get("SLURM_JOB_START_TIME", "")
    known = _NUMBER.fullmatch(ends) and _NUMBER.fullmatch(begins)
    return float(ends) - float(begins) if known else None


def left_of(limit_s: float | None, age_s: float | None, by_clock_s: float | None) -> float | None:
    """Return a job's time left: by this host's clock, unless that is clearly wrong."""
    if limit_s is None or age_s is None:
        return by_clock_s
    by_age_s = limit_s - age_s
    plausible = by_clock_s is not None and abs(by_clock_s - by_age_s) < CLOCK_OFF_S
    return by_clock_s if plausible else by_age_s


# ---- running commands ----


class Query:
    """A command that was started and is not waited for."""

    def __init__(self, argv: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.started = clock()
        # Not a pipe: nothing reads until the command has ended, and a full pipe would block it.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.DEVNULL,
                env=_plain_environ(),
            )
        except OSError:
            pass  # no SLURM here: there will be no answer

    @property
    def finished(self) -> bool:
        """Whether there is an answer, or there will be none."""
        if self._process is None or self._process.poll() is not None:
            return True
        if self._clock() - self.started > ANSWER_S:
            self.kill()
        return self._process is None

    def answer(self) -> str | None:
        """Return what it printed; None if it failed. Only once it is finished."""
        assert self.finished
        if self._process is None or self._process.returncode != 0:
            return None
        with self._output as file:
            file.seek(0)
            return file.read(ANSWER_MAX).decode("utf-8", "replace")

    def kill(self) -> None:
        """Kill the command; there will be no answer."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def output_of(argv: Sequence[str]) -> str | None:
    """Run a command and return its output; None if it fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
            env=_plain_environ(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _plain_environ() -> dict[str, str]:
    """Return the environment without variables that change squeue's columns or hide jobs."""
    return {name: text for name, text in os.environ.items() if not name.startswith("SQUEUE_")}


# ---- this worker's own job ----


class Allocation:
    """This worker's SLURM job, and the time it has left."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        grace_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.facts = facts_of(environ)
        self.job = Job.of(self.facts)
        self._is_whole_job = _is_whole_job(environ)
        self._clock = clock
        self._grace_s = grace_s
        self._query: Query | None = None
        self._leave_at = math.inf
        self._age_s = process_age_s() if self._is_whole_job else None
        left_s = None
        if self.job is not None:
            by_clock_s = left_by_environ(environ, time.time())
            left_s = left_of(limit_by_environ(environ), self._age_s, by_clock_s)
        if left_s is not None:
            self._set_end(left_s)
        elif self.job is not None:
            command = ["squeue", "--noheader", f"--jobs={self.job.name}", "--format=%L %l"]
            self._query = Query(command, clock=clock)

    def left_s(self) -> float:
        """Return how long this worker may still work; infinite if that is unknown."""
        if self._query is not None and self._query.finished:
            by_clock, _, limit = (self._query.answer() or "").strip().partition(" ")
            left_s = left_of(parse_time_left(limit), self._age_s, parse_time_left(by_clock))
            if left_s is not None:
                self._set_end(left_s - (self._clock() - self._query.started))
            self._query = None
        return self._leave_at - self._clock()

    def _set_end(self, left_s: float) -> None:
        grace_s = min(GRACE_S, left_s / 4) if self._grace_s is None else self._grace_s
        self._leave_at = self._clock() + left_s - grace_s

    def requeue(self) -> bool:
        """Ask SLURM to run this job again; False if it refuses, or the job is ending already.

        Call it last in a worker: SLURM then ends the processes of this run.
        """
        if self.job is None or not self._is_whole_job:
            return False
        row = parse_rows(output_of(rows_command([self.job])) or "").get(self.job.name)
        if row != Row("RUNNING", self.job.restarts):
            return False  # cancelled or preempted; or SLURM gave up this run and started another
        return output_of(["scontrol", "requeue", self.job.name]) is not None


def process_age_s() -> float | None:
    """Return how long ago this process started, unaffected by changes to the clock."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None  # not Linux


def _is_whole_job(environ: Mapping[str, str]) -> bool:
    """Return whether this process is a job's batch script: then the job does nothing else."""
    return environ.get("SLURM_TASK_PID") == str(os.getpid()) and "SLURM_STEP_ID" not in environ

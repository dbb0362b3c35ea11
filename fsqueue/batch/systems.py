"""Which batch system this process runs under, and how long its job may still run.

What each of them tells its jobs differs. Flux says how much time is left. LSF does, too, rounded to
minutes. Grid Engine and PBS say how much was asked for; the rest is reckoned from the age of this
process, which is the job's own where its script says `exec`. HyperQueue and Kubernetes tell a job
nothing, so their scripts give the limit as a number.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fsqueue.slurm.allocation import process_age_s

ANSWER_S: Final = 20.0
MARGIN_S: Final = 60.0
"""How long before the end a worker leaves: to finish a batch, save, and put its claim back."""
_DURATION: Final = re.compile(r"(?:(\d+):)?(\d+):(\d+)", re.ASCII)


class System(StrEnum):
    """The systems for which `fsqueue script` writes. The values are what is typed."""

    SGE = "sge"
    PBS = "pbs"
    LSF = "lsf"
    FLUX = "flux"
    KUBERNETES = "kubernetes"
    HYPERQUEUE = "hyperqueue"


@dataclass(frozen=True, slots=True)
class Asked:
    """How a system is asked about a job, and how its answer is read."""

    variable: str
    """That holds the job's id."""
    command: Callable[[str], Sequence[str]]
    read: Callable[[str], float | None]
    is_limit: bool
    """Whether the answer is the whole limit, not what is left of it."""


def limit_in_qstat(text: str) -> float | None:
    """Return Grid Engine's h_rt, else s_rt, in the output of `qstat -j JOB`, in seconds."""
    for name in ("h_rt", "s_rt"):
        if match := re.search(rf"\b{name}=([0-9:]+)", text):
            return _seconds(match[1])
    return None


def limit_in_pbs(text: str) -> float | None:
    """Return the walltime in the output of `qstat -f JOB`, in seconds."""
    match = re.search(r"Resource_List\.walltime = ([0-9:]+)", text)
    return _seconds(match[1]) if match else None


def left_in_lsf(text: str) -> float | None:
    """Return the time left in the output of `bjobs -noheader -o time_left JOB`, in seconds."""
    match = re.match(r"\s*(\d+):(\d+)\s+[LEX]?", text)
    return (int(match[1]) * 60 + int(match[2])) * 60.0 if match else None


def left_in_flux(text: str) -> float | None:
    """Return the seconds in the output of `flux job timeleft`; 0 stands for no limit there."""
    match = re.fullmatch(r"\s*(\d+)\s*", text)
    seconds = float(match[1]) if match else 0.0
    return seconds if 0 < seconds < 4e9 else None


ASKED: Final = {
    System.SGE: Asked("JOB_ID", lambda job: ["qstat", "-j", job], limit_in_qstat, is_limit=True),
    System.PBS: Asked("PBS_JOBID", lambda job: ["qstat", "-f", job], limit_in_pbs, is_limit=True),
    System.LSF: Asked(
        "LSB_JOBID",
        lambda job: ["bjobs", "-noheader", "-o", "time_left", job],
        left_in_lsf,
        is_limit=False,
    ),
    System.FLUX: Asked(
        "FLUX_JOB_ID", lambda job: ["flux", "job", "timeleft"], left_in_flux, is_limit=False
    ),
}


def system_of(environ: Mapping[str, str]) -> System | None:
    """Return the system whose job this process is in; None for SLURM and for none at all."""
    if "SGE_ROOT" in environ and "JOB_ID" in environ and "SGE_TASK_ID" in environ:
        return System.SGE
    for system in (System.FLUX, System.PBS, System.LSF):
        if ASKED[system].variable in environ:
            return system
    return None


def time_left_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Ask the batch system how long this process's job may still run; None if it does not say."""
    system = system_of(environ)
    if system is None:
        return None
    asked = ASKED[system]
    text = _output_of(asked.command(environ[asked.variable]))
    seconds = None if text is None else asked.read(text)
    if seconds is None or not asked.is_limit:
        return seconds
    return max(0.0, seconds - (process_age_s() or 0.0))


def worker_limit_s(left_s: float) -> float:
    """Return after how long a worker with so much time left has to leave."""
    return max(0.0, left_s - min(MARGIN_S, left_s / 4))


def _seconds(text: str) -> float | None:
    if text.isdecimal():
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (hours * 60 + minutes) * 60.0 + seconds


def _output_of(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

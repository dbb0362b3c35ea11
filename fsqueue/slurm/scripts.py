"""Write and submit SLURM batch scripts: arrays of workers, and the job that follows them.

The tasks of an array are workers, not claims. Any of them may start late, be preempted, or never
run; submitting again only adds workers. Account, partition, memory and time are the caller's to
choose, by sbatch's own options.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fsqueue.errors import FsqueueError, NotSupportedError, UsageError
from fsqueue.pool.settings import PoolDirectory
from fsqueue.slurm.arrays import Array, index_text

LEAD_S: Final = 120
"""How long before the end of its time limit a worker is warned."""
LEAD_MIN_S: Final = 10
TICK_S: Final = 30
"""SLURM checks time limits every half minute, so a warning can come this much early."""

_LIMIT: Final = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ScriptOptions:
    """How all jobs of one submission run."""

    sbatch: Sequence[str] = ()
    """Options for sbatch, which win over those written here."""
    output: str = ""
    throttle: int | None = None
    start_delay_s: float = 0.0


def worker_script(pool: PoolDirectory, array: Array, options: ScriptOptions) -> str:
    """Return the batch script of one array of workers."""
    lead_s = _lead_s(_limit_s(options.sbatch))
    throttle = f"%{options.throttle}" if options.throttle else ""
    # A task that ends while others still run claims has not failed; the merge looks for itself.
    command = [sys.executable, "-P", "-m", "fsqueue", "work", pool.root, "--others-ok"]
    command += ["--grace", str(lead_s + TICK_S), "--start-delay", f"{options.start_delay_s:g}"]
    lines = [
        "#!/bin/bash",
        f"# Workers on {array.model}. Each task is a worker, not a claim: any number may run.",
        *_head(pool, options, f"{_events(pool)}/slurm-%A_%a.log"),
        f"#SBATCH --array={index_text(array.indices)}{throttle}",
        *([f"#SBATCH --gres={array.gres}"] if array.gres else []),
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{lead_s}",
        *_sbatch_line(options.sbatch),
        "",
        *([] if array.gres else ["export CUDA_VISIBLE_DEVICES=  # not set, it means every GPU"]),
        "trap '' USR1  # a warning must not end a worker that does not listen yet",
        "# exec: signals go to the batch process, which must be the worker itself.",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def merge_script(
    pool: PoolDirectory, jobs: Sequence[str], command: str, options: ScriptOptions
) -> str:
    """Return the script of the job that runs `command` once `jobs` have ended and all is done."""
    lines = [
        "#!/bin/bash",
        "# Starts when every worker has ended, however, and continues only if all is done.",
        *_head(pool, options, f"{_events(pool)}/slurm-%j-merge.log"),
        f"#SBATCH --dependency=afterany:{':'.join(jobs)}",
        *_sbatch_line(options.sbatch),
        "",
        # R30: `status` answers 0 only after it saw every claim done; `check`, every output whole.
        f"{_fsqueue('status', pool.root)} || exit",
        f"{_fsqueue('check', pool.root)} || exit",
        command,
    ]
    return "\n".join(lines) + "\n"


def _fsqueue(*words: str) -> str:
    return shlex.join([sys.executable, "-P", "-m", "fsqueue", *words])


def _head(pool: PoolDirectory, options: ScriptOptions, output: str) -> list[str]:
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(pool.root))
    return [
        f"#SBATCH --job-name=fsqueue-{name}",
        f"#SBATCH --output={_word(options.output or output)}",
        "#SBATCH --open-mode=append",
    ]


def _events(pool: PoolDirectory) -> str:
    return pool.directory("events").replace("%", "%%")


def _sbatch_line(options: Sequence[str]) -> list[str]:
    return [f"#SBATCH {' '.join(map(_word, options))}"] if options else []


def _word(text: str) -> str:
    """Quote a word for an #SBATCH line."""
    if "\n" in text or "\\" in text:
        raise UsageError(
            f"{text!r} holds a line break or a backslash, which sbatch cannot read from a script. "
            f"Use another path or option."
        )
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./~\[\]-]+", text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _limit_s(options: Sequence[str]) -> int | None:
    """Return the time limit in seconds among sbatch's options; the last one counts."""
    found = os.environ.get("SBATCH_TIMELIMIT", "")
    for word, following in zip(options, [*options[1:], ""], strict=False):
        if word in ("-t", "--time"):
            found = following
        elif word.startswith("--time="):
            found = word.removeprefix("--time=")
        elif re.match(r"-t\d", word):
            found = word[2:]
    return parse_limit(found)


def parse_limit(text: str) -> int | None:
    """Return the seconds in sbatch's --time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    if (match := _LIMIT.fullmatch(text)) is None:
        return None
    days, first, second, third = match.groups()
    numbers = [int(first), int(second or 0), int(third or 0)]
    if days is None and third is None:
        numbers = [0, *numbers[:2]]
    return ((int(days or 0) * 24 + numbers[0]) * 60 + numbers[1]) * 60 + numbers[2]


def _lead_s(limit_s: int | None) -> int:
    """Return how early to warn; with a tick, that must leave a short job half of its time."""
    if limit_s is None:
        return LEAD_S
    return max(LEAD_MIN_S, min(LEAD_S, (limit_s - TICK_S) // 2))


# ---- submitting ----


def submit(script: str) -> str:
    """Hand a script to sbatch; return the job's id."""
    if shutil.which("sbatch") is None:
        raise NotSupportedError(
            "there is no sbatch on this machine. Log in to one from which jobs are submitted, or "
            "print the scripts with --dry-run."
        )
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"],
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        )
    except subprocess.TimeoutExpired as error:
        raise FsqueueError("sbatch did not answer in 2 minutes; see: scontrol ping") from error
    if done.returncode != 0:
        reason = done.stderr.strip().removeprefix("sbatch: error: ") or f"status {done.returncode}"
        raise FsqueueError(
            f"sbatch refused: {reason}. What it needs (-A, -p, --time ...) goes after -- on this "
            f"command line."
        )
    return done.stdout.strip().partition(";")[0]

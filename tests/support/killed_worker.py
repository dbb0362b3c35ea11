"""Kill a worker with SIGKILL in the middle of a long claim, and find out what the next one repeats.

The workers are real processes that run the real command, plus a line in a log for every computed
batch.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PLAN = """
from fsqueue.scheduling import planner
planner.CLAIMS_PER_SPOOL = 1  # one long claim, where there would be eight
from fsqueue.cli import main
main()
"""
WORK = """
import os, sys, time
from embed.engine import float32_fallback
from fsqueue.cli import main

real = float32_fallback.Float32Fallback.run
log = open(os.environ["BATCHES"], "a", buffering=1)

def logged(self, batches, warn):
    began = time.monotonic()
    for batch, rows in real(self, batches, warn):
        key = f"{batch[0].row}.{batch[0].window}"
        log.write(f"{began} {time.monotonic()} {key} {sum(one.tokens for one in batch)}\\n")
        yield batch, rows
        began = time.monotonic()

float32_fallback.Float32Fallback.run = logged
main()
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """One line of a log: on the clock that all processes of this machine share."""

    began: float
    ended: float
    key: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the two workers computed, and an undisturbed third one."""

    first: list[Batch]
    second: list[Batch]
    whole: list[Batch]
    checkpoints: int
    identical: bool

    @property
    def repeated(self) -> list[Batch]:
        """The batches that the first worker had computed and the second computed again."""
        again = {batch.key for batch in self.second}
        return [batch for batch in self.first if batch.key in again]

    @property
    def repeated_s(self) -> float:
        """How long the first worker had taken for them."""
        return self.repeated[-1].ended - self.repeated[0].began if self.repeated else 0.0

    @property
    def longest_s(self) -> float:
        """The longest batch of the first worker."""
        return max(batch.ended - batch.began for batch in self.first)


def kill_and_resume(
    folder: Path, model: Path, fasta: Path, options: dict[str, int], checkpoints: int
) -> Report:
    """Kill the first worker some time after that many checkpoints; let a second one finish."""
    for pool in ("killed", "undisturbed"):
        words = [f"--{name}={value}" for name, value in options.items()]
        _run(PLAN, "plan", "embed", folder / pool, fasta, "--model", model, "--gpus=cpu", *words)
    first = start(folder / "killed", folder / "first.log")
    _wait_for_checkpoints(folder / "killed", checkpoints, first)
    time.sleep(0.6 * options["checkpoint-seconds"])  # between two checkpoints
    first.kill()
    first.wait()
    saved = len(list((folder / "killed" / "partial").glob("*/rows-*")))
    _run(WORK, "recover", folder / "killed", BATCHES=folder / "recover.log")
    for pool, log in (("killed", "second"), ("undisturbed", "whole")):
        assert start(folder / pool, folder / f"{log}.log").wait() == 0
    logs = [read_log(folder / f"{log}.log") for log in ("first", "second", "whole")]
    return Report(*logs, saved, _digest(folder / "killed") == _digest(folder / "undisturbed"))


def _environment(extra: dict[str, object]) -> dict[str, str]:
    plain = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **plain, **{name: str(value) for name, value in extra.items()}}


def _run(code: str, *words: object, **extra: object) -> None:
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(extra))
    assert done.returncode == 0, done.stderr


def start(pool: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a worker that writes a line to `log` for every batch."""
    command = [sys.executable, "-c", WORK, "work", str(pool), *words]
    environment = _environment({"BATCHES": log})
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def _wait_for_checkpoints(pool: Path, count: int, worker: subprocess.Popen[bytes]) -> None:
    while len(list((pool / "partial").glob("*/rows-*"))) < count:
        assert worker.poll() is None, "the claim ended before it could be killed"
        time.sleep(0.02)


def read_log(path: Path) -> list[Batch]:
    """Return the batches that a worker computed, in order."""
    lines = (line.split() for line in path.read_text().splitlines())
    return [Batch(float(a), float(b), key, int(tokens)) for a, b, key, tokens in lines]


def _digest(pool: Path) -> str:
    (output,) = (pool / "outputs").glob("*.safetensors")
    return hashlib.sha256(output.read_bytes()).hexdigest()

"""Count metadata operations with strace: of a claim that is taken and finished, of any command.

A claim's handler does nothing, and its count is the difference of two runs that take a different
number of claims, so that starting and leaving cancel out.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fsqueue.pool.claims import Claim
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, create_pool
from tests.support.handlers import handler_environment, install_handler
from tests.support.processes import FSQUEUE, environment

METADATA = (
    "%file,%stat,%lstat,%fstat,getdents,getdents64,flock,fsync,fdatasync,ftruncate,fchmod,fchown"
)
"""Calls that name a file, or read a directory or an inode; not read, write or close. `-y` shows
the path behind a descriptor, so that calls on one are counted, too."""
FEW, MORE = 50, 250

NOOP = """
from fsqueue import Handler

class Made(Handler):
    suffix = None

    def run(self, work):
        pass
"""


def fill(root: Path, count: int) -> PoolDirectory:
    """Make a pool where `count` claims wait in cpu0 for a handler that does nothing.

    By hand, because the planner syncs every claim, which is not needed here.
    """
    pool = create_pool(str(root), lease_s=3600.0)
    put_spools(pool, ("cpu0", "cpu1"))
    put_claims(pool, count)
    return pool


def put_spools(pool: PoolDirectory, names: Iterable[str]) -> None:
    """Add these spools to a pool."""
    for name in names:
        add_spool(pool, Spool(name, "cpu", 1.0))


def put_claims(pool: PoolDirectory, count: int) -> None:
    """Put `count` claims of the handler NOOP into cpu0."""
    for number in range(count):
        name = ClaimName(f"noop-{number:06d}", "noop", 1 + number % 97)
        claim = Claim("noop", "cpu0", {}, {}, {})
        Path(pool.waiting("cpu0", name)).write_bytes(claim.encode(name))


def operations_per_claim(directory: Path, pool: PoolDirectory, spool: str) -> dict[str, float]:
    """Return the operations by name for one claim of cpu0, taken by a worker of `spool`.

    Takes FEW + MORE of the claims that wait.
    """
    site = directory / "site"
    env = handler_environment(site) if site.exists() else install_handler(site, "noop", NOOP)
    few, more = (_count(directory / "strace", pool, spool, number, env) for number in (FEW, MORE))
    counts = more - few
    return {call: round(count / (MORE - FEW), 2) for call, count in sorted(counts.items())}


def _count(
    log: Path, pool: PoolDirectory, spool: str, number: int, env: Mapping[str, str]
) -> Counter[str]:
    """Run a worker that takes `number` claims; return its calls on paths inside the pool."""
    words = ["work", pool.root, "--spool", spool, "--max-claims", str(number)]
    calls = calls_of([*FSQUEUE, *words], pool, log, status=75, env=env)
    return Counter(name for name, _ in calls)


def _strace(log: Path, *options: str) -> list[str | Path]:
    shown = ["-y", "-qq", "-s", "512", "-e", f"trace={METADATA}"]
    return ["strace", "-f", *options, *shown, "-o", log]


def calls_of(
    argv: Sequence[str | Path],
    pool: PoolDirectory,
    log: Path,
    *,
    status: int = 0,
    env: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:
    """Run a command to its end; return its calls on paths inside the pool, each with its line."""
    run = subprocess.run(
        [*_strace(log), *argv],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == status, run.stderr
    call = re.compile(rf"(?:\d+ +)?(?:<\.\.\. )?(\w+)\(.*{re.escape(pool.root)}/")
    lines = log.read_text(errors="replace").splitlines()
    return [(match[1], line) for line in lines if (match := call.match(line))]


# ---- idle workers ----


class TracedWorker:
    """An idle worker under strace: its calls on its pool, with their times."""

    def __init__(self, pool: PoolDirectory, log: Path, *words: str) -> None:
        self._pool, self._log = pool, log
        argv = [*_strace(log, "-ttt"), *FSQUEUE, "work", pool.root, *words]
        self._process = subprocess.Popen(
            argv,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def calls(self) -> list[tuple[float, str]]:
        """Return when each call so far was made, and its name with what of the pool it is on."""
        call = re.compile(
            rf"\d+ +(\d+\.\d+) (?:<\.\.\. )?(\w+)\(.*?{re.escape(self._pool.root)}/([\w.]+)"
        )
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return [
            (float(match[1]), f"{match[2]} {match[3]}")
            for line in lines
            if (match := call.match(line))
        ]

    def counts(self, begin: float, end: float) -> Counter[str]:
        """Return the calls of a span of time, most frequent first."""
        return Counter(call for at, call in self.calls() if begin <= at < end)

    def end(self) -> None:
        """Kill strace, and with it the worker."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

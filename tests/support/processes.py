"""Run fsqueue as real processes: start, wait for a named condition, stop, kill, reap.

Every wait has a deadline and names what it waits for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from fsqueue.pool.leases import ended_lease_names, lease_names
from fsqueue.pool.settings import PoolDirectory

DEADLINE_S = 30.0
POLL_S = 0.01
FSQUEUE = (sys.executable, "-m", "fsqueue")

T = TypeVar("T")
Word = str | bytes | Path
Start = Callable[..., "Running"]
"""The fixture `start`: begin `fsqueue WORD...`, and kill it at the end of the test."""


def wait_for(condition: Callable[[], T], what: str, *, deadline_s: float = DEADLINE_S) -> T:
    """Return the first value of `condition` that is true; TimeoutError names what never came."""
    until = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come within {deadline_s:g} s")
        time.sleep(POLL_S)
    return value


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: this one, without any GPU."""
    return os.environ | {"CUDA_VISIBLE_DEVICES": ""} | dict(extra or {})


def fsqueue(
    *words: Word,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    deadline_s: float = DEADLINE_S,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; what it printed comes back as text."""
    return subprocess.run(
        [*FSQUEUE, *words],
        env=environment(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=deadline_s,
    )


class Running:
    """A started fsqueue process; its stdout and stderr go to files beside each other."""

    def __init__(
        self, words: Sequence[Word], log: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with open(log, "wb") as stderr, open(f"{log}.stdout", "wb") as stdout:
            self._process = subprocess.Popen(
                [*FSQUEUE, *words],
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self._log.read_text(errors="surrogateescape")

    @property
    def stdout(self) -> str:
        """What it has written to stdout so far."""
        return Path(f"{self._log}.stdout").read_text(errors="surrogateescape")

    def worker_in(self, pool: PoolDirectory) -> str:
        """Return its worker id, once its lease is visible."""

        def enlisted() -> str:
            names = (name.worker for name in lease_names(pool) if name.living)
            return next((name for name in names if f"-{self.pid}-" in name), "")

        return wait_for(enlisted, f"the lease of process {self.pid} in {pool.root}/workers")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone, not to what it started."""
        self._process.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP it, and wait until it has stopped."""
        self.send(signal.SIGSTOP)
        wait_for(lambda: state_of(self.pid) == "T", f"process {self.pid} to stop")

    def thaw(self) -> None:
        """Let a stopped process continue."""
        self.send(signal.SIGCONT)

    def vanish(self) -> None:
        """End it as a power cut does: with its guardian, which could have ended its lease."""
        for pid in guardians_of(self.pid):
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and reap it."""
        self._process.kill()
        self._process.wait()

    def ended(self) -> bool:
        """Return whether it has ended; then it is reaped."""
        return self._process.poll() is not None

    def reap(self, *, deadline_s: float = DEADLINE_S) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"process {self.pid} did not end within {deadline_s:g} s; its log:\n{self.log}"
            ) from None


def leases_in(pool: PoolDirectory) -> list[str]:
    """Return the names of all leases, living or ended, sorted."""
    return sorted(map(str, (*lease_names(pool), *ended_lease_names(pool))))


def guardians_of(worker_pid: int) -> list[int]:
    """Return the pids of the guardian of a worker: at most one."""
    return [
        pid
        for pid in children_of(worker_pid)
        if "fsqueue.worker.liveness.guardian" in command_of(pid)
    ]


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # RACE: it has just ended
        if parent == pid:
            found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> str:
    """Return a process's command line, "" if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def state_of(pid: int) -> str:
    """Return a process's state letter as ps shows it, "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Return whether a process runs; one that only waits to be reaped does not."""
    return state_of(pid) not in ("", "Z", "X")


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait until none of these processes runs: after SIGKILL, a process takes a moment to end."""
    wait_for(lambda: not any(map(alive, pids)), f"processes {pids} to be gone", deadline_s=5.0)

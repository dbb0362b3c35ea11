"""Start a real HyperQueue here, lose its workers, and run what `fsqueue script` prints on it.

The package on PyPI has no program `hq`, so the options of the printed `hq submit` are read here by
their documented rules, and handed to the same server through the Python API.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hyperqueue.node import READY
from tests.support.processes import (
    children_of,
    command_of,
    environment,
    state_of,
    wait_for,
    wait_until_gone,
)

NODE = Path(__file__).with_name("node.py")
UNLIMITED = 65535
"""The Python API has no word for it."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """What `hq submit` is asked for."""

    options: argparse.Namespace
    command: list[str]


def read_submit(text: str) -> Submitted:
    """Read the printed script, whose last line is `exec hq submit OPTION... -- COMMAND...`."""
    words = shlex.split(text.splitlines()[-1])
    assert words[:3] == ["exec", "hq", "submit"], words
    end = words.index("--")
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in ("array", "name", "cpus", "stdout", "stderr", "crash-limit", "time-limit"):
        parser.add_argument(f"--{name}")
    for name in ("resource", "env"):
        parser.add_argument(f"--{name}", action="append", default=[])
    return Submitted(parser.parse_args(words[3:end]), words[end + 1 :])


class HyperQueue:
    """A server and any number of workers, each a process. `stop` it."""

    def __init__(self) -> None:
        # Not below pytest's own: a worker listens on a socket there, whose path has to be short.
        self.root = Path(tempfile.mkdtemp(prefix="fsq-hq-", dir="/tmp"))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._server = self._start("server")

    def add_worker(self, cores: int) -> int:
        """Start a worker, and return its process id once it is registered."""
        self._start("worker", str(self._server), str(cores))
        return self._nodes[-1].pid

    def _start(self, role: str, *words: str) -> Path:
        directory = self.root / f"{role}{len(self._nodes)}"
        shown = {"TMPDIR": str(self.root), "CUDA_VISIBLE_DEVICES": "0,1"}
        command = [sys.executable, str(NODE), role, str(directory), *words]
        with (self.root / f"{directory.name}.log").open("wb") as log:
            node = subprocess.Popen(
                command,
                env=environment(shown | {"PYTHONPATH": str(NODE.parents[2])}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._nodes.append(node)
        wait_for((directory / READY).exists, f"HyperQueue's {directory.name}")
        return directory

    def submit(self, text: str) -> int:
        """Submit what was printed; return the job's id."""
        from hyperqueue import Client, Job
        from hyperqueue.ffi.protocol import ResourceRequest

        asked = read_submit(text)
        options = asked.options
        first, _, last = options.array.partition("-")
        assert options.crash_limit == "unlimited" and not options.time_limit
        job = Job(name=options.name, max_fails=None)
        for _ in range(int(first), int(last) + 1):
            job.program(
                asked.command,
                env=dict(each.split("=", 1) for each in options.env),
                stdout=options.stdout,
                stderr=options.stderr,
                cwd=self.root,
                resources=ResourceRequest(
                    cpus=int(options.cpus),
                    resources=dict(each.split("=", 1) for each in options.resource),
                ),
                crash_limit=UNLIMITED,
            )
        self._client = Client(str(self._server))
        return int(self._client.submit(job).id)

    def wait(self, job: int, *, deadline_s: float = 90.0) -> bool:
        """Wait for a job's end; return whether every task exited 0."""
        until = time.monotonic() + deadline_s

        def look(counts: dict[int, Any]) -> None:
            if time.monotonic() > until:
                raise TimeoutError(f"the job did not end within {deadline_s:g} s: {counts}")

        return not self._client.connection.wait_for_jobs((job,), look)

    def lose_process(self, worker: int) -> None:
        """Kill a worker as the kernel does for lack of memory; what it started lives on."""
        os.kill(worker, signal.SIGKILL)
        self._reap(worker)

    def lose_host(self, worker: int) -> None:
        """Kill a worker and everything that it started at once, as a power cut does."""
        os.kill(worker, signal.SIGSTOP)  # it must not see, and report, that its tasks end
        wait_for(lambda: state_of(worker) == "T", f"HyperQueue's worker {worker} to stop")
        below = _descendants(worker)
        # Guardians first: they would end the leases.
        for pid in sorted(
            below, key=lambda pid: "fsqueue.worker.liveness.guardian" not in command_of(pid)
        ):
            with suppress(ProcessLookupError):  # RACE: programs of the claims come and go
                os.kill(pid, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        self._reap(worker)
        wait_until_gone(below)

    def tasks_of(self, worker: int) -> list[int]:
        """Return the processes of the tasks that a worker runs."""
        return children_of(worker)

    def _reap(self, worker: int) -> None:
        next(node for node in self._nodes if node.pid == worker).wait()

    def stop(self) -> None:
        """Kill everything, and remove it."""
        for node in reversed(self._nodes):
            if node.poll() is None:
                self.lose_host(node.pid)
        shutil.rmtree(self.root, ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    found = []
    for child in children_of(pid):
        found += [child, *_descendants(child)]
    return found

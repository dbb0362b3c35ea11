"""The exactly-once storm on two hosts: workers of both are killed at random, and one host watches.

Nothing here touches the share: claims are planned, worked, watched and counted by processes on the
hosts (`witness.py` counts, on the host that did not plan).
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.sharedfs.hosts import Host, Process
from tests.support.processes import wait_for
from tests.support.storm import PROGRAM

STEAL_INTERVAL = "0.5"


@dataclass
class Storm:
    """One pool on a share, its workers, and what kills them."""

    hosts: Sequence[Host]
    name: str
    seed: int
    claims: int = 60
    workers: int = 2
    """On each host."""
    lease_s: float = 3.0
    lasts_s: float = 8.0
    kill_every_s: float = 0.7
    pause_max_s: float = 1.0
    finish_within_s: float = 90.0
    after_planning: Callable[[], None] = lambda: None
    watcher: Host | None = None
    """The host that watches and counts; by default the last one."""
    expected: tuple[str, ...] = ()
    """Errors that the mount makes on order: attempts may fail with them, claims may not."""
    kills: int = 0
    finish_s: float = 0.0
    """How long it took from the last kill until all was done."""
    tally: dict[str, Any] = field(default_factory=dict)
    _running: list[Process] = field(default_factory=list)

    def pool(self, host: Host) -> str:
        """Return the pool's path as a host sees it."""
        return f"{host.share}/{self.name}/pool"

    def run(self) -> Storm:
        """Plan, kill workers, let the others finish, count."""
        chance = random.Random(self.seed)
        self._plan(chance)
        self.after_planning()
        watcher = self.watcher or self.hosts[-1]
        script = [sys.executable, "-m", "tests.sharedfs.witness"]
        witness = watcher.start(*script, self.pool(watcher), str(self.claims))
        self._kill_a_holder()
        until = time.monotonic() + self.lasts_s
        while time.monotonic() < until:
            self._fill()
            time.sleep(chance.uniform(0.5, 1.5) * self.kill_every_s)
            self._kill(chance.choice(self._running))
        self._finish()
        witness.send(signal.SIGTERM)
        witness.reap(deadline_s=self.finish_within_s)
        out, err = witness.said()
        assert out, err
        self.tally = json.loads(out)
        return self

    def _plan(self, chance: random.Random) -> None:
        """Write the inputs on the share, and plan them, on the first host."""
        host = self.hosts[0]
        inputs = f"{host.share}/{self.name}/inputs"
        lines = "".join(
            f"claim{number:04d} {chance.uniform(0.01, self.pause_max_s):.3f}\n"
            for number in range(self.claims)
        )
        script = 'mkdir -p "$1" && cd "$1" && printf %s "$2" | while read -r name pause; do '
        script += 'echo "$name $pause" >"$name"; done'
        host.run("sh", "-c", script, "sh", inputs, lines)
        words = ["plan", "command", self.pool(host), inputs, "--gpus", "cpux3", "--attempts", "100"]
        plan = host.fsqueue(*words, "--lease", f"{self.lease_s:g}s", "--", *PROGRAM)
        assert plan.reap() == 0, plan.said()

    def _kill(self, worker: Process) -> None:
        self._running.remove(worker)
        worker.send(signal.SIGKILL)
        self.kills += 1

    def _kill_a_holder(self) -> None:
        """Kill workers that hold a claim, until one has left a claim behind to be recovered."""
        while True:
            self._fill()
            held, worker = wait_for(self._find_holder, "a worker to hold a claim")
            self._kill(worker)
            worker.reap()
            if held in self._list_running(worker.host):
                return

    def _find_holder(self) -> tuple[str, Process] | None:
        for host in self.hosts:
            for name in self._list_running(host):
                for worker in self._running:
                    if worker.host is host and f"@{host.name}-{worker.pid}-" in name:
                        return name, worker
        return None

    def _list_running(self, host: Host) -> list[str]:
        return host.run("ls", f"{self.pool(host)}/running").split()

    def _fill(self) -> None:
        """Start workers in place of those that were killed or have left."""
        self._running = [worker for worker in self._running if worker.status() is None]
        for host in self.hosts:
            there = sum(worker.host is host for worker in self._running)
            self._running += [self._start(host) for _ in range(self.workers - there)]

    def _start(self, host: Host) -> Process:
        words = ["work", self.pool(host), "--steal-interval", STEAL_INTERVAL]
        planned = self.hosts[0].share
        if host.share != planned:
            words += ["--path-map", f"{planned}={host.share}"]
        return host.fsqueue(*words)

    def _finish(self) -> None:
        """Let the remaining workers finish; start another if all have left and work remains."""
        begun = time.monotonic()
        self._fill()
        host = self.hosts[0]

        def all_done() -> bool:
            self._running = [worker for worker in self._running if worker.status() is None]
            if self._running:
                return False
            last = self._start(host)
            status = last.reap(deadline_s=self.finish_within_s)
            return status == 0

        wait_for(all_done, f"{self.name} to be done", deadline_s=self.finish_within_s)
        self.finish_s = time.monotonic() - begun

    def verify(self) -> str:
        """Assert that every output is there once and whole; return a summary."""
        tally = self.tally
        problems = [p for p in tally["problems"] if not any(words in p for words in self.expected)]
        assert not problems, "\n".join(problems)
        wrong = {what: tally[what] for what in ("lost", "doubled", "torn", "strangers", "failed")}
        assert not any(wrong.values()), wrong
        assert tally["done"] == self.claims
        assert tally["returned"] > 0, "no claim of a killed worker was put back"
        return (
            f"{self.name}: seed {self.seed}, {self.claims} claims, {self.kills} kills, "
            f"{tally['recovered']} recovered, all done {self.finish_s:.1f} s after the last kill"
        )

"""One claim, the host that holds it, and another host whose worker is idle.

How long it takes until the other has the claim is measured; outputs are watched and counted from
the other host.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.sharedfs.hosts import Host, Process
from tests.support.processes import wait_for
from tests.support.storm import PROGRAM

RUNS_S = 12.0
"""How long a claim's program runs."""
DEADLINE_S = 300.0
STAYS = ("--steal-interval", "0.5", "--linger", "10m")


class Trial:
    """A pool with claims that run for a while, one worker on each host, and a witness.

    The victim's worker is there first, so that a pool's only claim is held by it.
    """

    def __init__(
        self, hosts: Sequence[Host], name: str, *, claims: int = 1, lease_s: float = 3.0
    ) -> None:
        self.victim, self.other = hosts
        self.name, self.claims, self.lease_s = name, claims, lease_s
        self.begun = 0.0
        self.workers: dict[str, Process] = {}
        self._plan()
        script = [sys.executable, "-m", "tests.sharedfs.witness", self.pool(self.other)]
        self._witness = self.other.start(*script, str(claims))
        self._start(self.victim)
        wait_for(lambda: self.held_by(self.victim), "the victim to hold a claim")
        self._start(self.other)
        wait_for(lambda: self._enlisted(self.other), "the other's worker")

    def _start(self, host: Host) -> None:
        self.workers[host.name] = host.fsqueue("work", self.pool(host), *STAYS)

    def _enlisted(self, host: Host) -> bool:
        return any(name.startswith(f"{host.name}-") for name in self._list("workers"))

    def pool(self, host: Host) -> str:
        """Return the pool's path as a host sees it."""
        return f"{host.share}/{self.name}/pool"

    def _plan(self) -> None:
        inputs = f"{self.other.share}/{self.name}/inputs"
        script = 'mkdir -p "$1"; cd "$1"; for n in $(seq "$2"); do '
        script += 'echo "claim$n $3" >claim$n; done'
        self.other.run("sh", "-c", script, "sh", inputs, str(self.claims), f"{RUNS_S:g}")
        plan = self.other.fsqueue(
            *("plan", "command", self.pool(self.other), inputs, "--gpus", "cpu"),
            *("--lease", f"{self.lease_s:g}s", "--attempts", "9", "--", *PROGRAM),
        )
        assert plan.reap() == 0, plan.said()

    def _list(self, directory: str) -> list[str]:
        return self.other.run("ls", f"{self.pool(self.other)}/{directory}").split()

    def held_by(self, host: Host) -> list[str]:
        """Return the ids of the claims that a host's workers hold, as the other host lists them."""
        return [n.partition(".")[0] for n in self._list("running") if f"@{host.name}-" in n]

    def strike(self, what: Callable[[], None]) -> list[str]:
        """Call `what`; return what the victim held."""
        held = self.held_by(self.victim)
        assert held
        self.begun = time.monotonic()
        what()
        return held

    def recovered(self, held: list[str]) -> float:
        """Wait until the other host has what the victim held; return how long that took."""
        wait_for(
            lambda: set(held) <= {*self.held_by(self.other), *self._done()},
            f"{held} to be taken over",
            deadline_s=DEADLINE_S,
        )
        return time.monotonic() - self.begun

    def _done(self) -> list[str]:
        return [name.partition(".")[0] for name in self._list("done")]

    def zombie_leaves(self) -> float:
        """Wait until the victim's worker has noticed its loss and left; return how long that took.

        It learns so from its lease, or from a file system that evicted its host, as CephFS does.
        """
        begun = time.monotonic()
        worker = self.workers[self.victim.name]
        assert worker.reap(deadline_s=DEADLINE_S) == 1, worker.said()
        said = worker.said()[1]
        assert "was declared dead by" in said or "disconnected this host" in said, said
        return time.monotonic() - begun

    def tally(self) -> dict[str, Any]:
        """Wait until all is done; assert that each output is there once; return the counts."""
        wait_for(lambda: len(self._done()) == self.claims, "all to be done", deadline_s=DEADLINE_S)
        self.workers[self.other.name].send(signal.SIGTERM)
        self.workers[self.other.name].reap()
        self._witness.send(signal.SIGTERM)
        self._witness.reap()
        out, err = self._witness.said()
        assert out, err
        tally: dict[str, Any] = json.loads(out)
        assert not tally["problems"], "\n".join(tally["problems"])
        wrong = {what: tally[what] for what in ("lost", "doubled", "torn", "strangers", "failed")}
        assert not any(wrong.values()), wrong
        return tally

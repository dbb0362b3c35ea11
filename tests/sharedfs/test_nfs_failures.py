"""What happens to hosts that share a pool over NFS: frozen, cut off, without power, misinformed.

The worker of one host holds a claim when it happens; a worker of the other host is idle. How long
it takes until the other one has the claim is printed.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.sharedfs.hosts import Host, Process
from tests.sharedfs.nfs import Guest, Lan
from tests.support.processes import wait_for
from tests.support.storm import PROGRAM

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
Tell = Callable[[str], None]
LEASE_S = 3.0
RUNS_S = 4.0
"""How long a claim's program runs."""
STAYS = ("--steal-interval", "0.5", "--linger", "2m")


class Trial:
    """A pool with claims that run for a while, one worker on each host, and a witness.

    The victim's worker is there first, so that a pool's only claim is held by it.
    """

    def __init__(self, lan: Lan, version: str, name: str, claims: int = 1) -> None:
        self.victim, self.other = lan.clients(version)
        self.name, self.claims = f"{name}-{version}", claims
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
        return f"{host.name}-" in self.other.run("ls", f"{self.pool(self.other)}/workers")

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
            *("--lease", f"{LEASE_S:g}s", "--attempts", "9", "--", *PROGRAM),
        )
        assert plan.reap() == 0, plan.said()

    def held_by(self, host: Host) -> list[str]:
        """Return the ids of the claims that a host's workers hold, as the other host lists them."""
        names = self.other.run("ls", f"{self.pool(self.other)}/running").split()
        return [name.partition(".")[0] for name in names if f"@{host.name}-" in name]

    def strike(self, what: Callable[[], None]) -> list[str]:
        """Let it happen; return what the victim held."""
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
            deadline_s=150.0,
        )
        return time.monotonic() - self.begun

    def _done(self) -> list[str]:
        names = self.other.run("ls", f"{self.pool(self.other)}/done").split()
        return [name.partition(".")[0] for name in names]

    def tally(self) -> dict[str, Any]:
        """Wait until all is done; find each output once and whole; return the count."""
        wait_for(lambda: len(self._done()) == self.claims, "all to be done", deadline_s=150.0)
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


def guest(host: Host) -> Guest:
    assert isinstance(host, Guest)
    return host


@pytest.fixture(params=["4.2", "3"])
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    """The version of NFS."""
    yield request.param


def test_a_frozen_host_loses_its_claims_and_harms_nothing_when_it_thaws(
    version: str, lan: Lan, tell: Tell
) -> None:
    trial = Trial(lan, version, "frozen")
    victim = guest(trial.victim)
    held = trial.strike(victim.freeze)
    took_s = trial.recovered(held)
    victim.thaw()
    worker = trial.workers[victim.name]
    assert worker.reap(deadline_s=60.0) == 1
    assert "was declared dead by" in worker.said()[1]
    assert trial.tally()["recovered"] == len(held)
    tell(f"nfs {version}, host frozen: its claim was taken over {took_s:.1f} s later")


def test_a_host_that_is_cut_off_and_comes_back_finds_its_claims_gone(
    version: str, lan: Lan, tell: Tell
) -> None:
    trial = Trial(lan, version, "cut-off")
    victim = guest(trial.victim)
    held = trial.strike(victim.unplug)
    took_s = trial.recovered(held)
    victim.plug()
    plugged = time.monotonic()
    worker = trial.workers[victim.name]
    assert worker.reap(deadline_s=150.0) == 1
    back_s = time.monotonic() - plugged
    assert "was declared dead by" in worker.said()[1]
    assert trial.tally()["recovered"] == len(held)
    tell(
        f"nfs {version}, host cut off: its claim was taken over {took_s:.1f} s later; its worker "
        f"noticed and left {back_s:.1f} s after the cable was back"
    )


def test_a_host_that_loses_power_costs_an_attempt_of_what_it_held(
    version: str, lan: Lan, tell: Tell
) -> None:
    trial = Trial(lan, version, "no-power")
    victim = guest(trial.victim)
    held = trial.strike(victim.kill)
    took_s = trial.recovered(held)
    assert trial.tally()["recovered"] == len(held)
    lan.boot(victim.name).ready()
    tell(f"nfs {version}, host without power: its claim was taken over {took_s:.1f} s later")


def test_replies_that_are_lost_while_the_server_reboots_lose_and_double_nothing(
    version: str, lan: Lan, tell: Tell
) -> None:
    """What was done, and could not be reported, is asked again of a server that forgot it."""
    trial = Trial(lan, version, "lost-replies", claims=8)
    lan.mute(trial.victim.name)
    time.sleep(2.0)  # in which its beats and its claims' moves are done, and go unanswered
    begun = time.monotonic()
    lan.server.kill()
    lan.boot("server", rebooted=True).ready()
    trial.tally()
    tell(f"nfs {version}, lost replies: all done {time.monotonic() - begun:.0f} s after the crash")

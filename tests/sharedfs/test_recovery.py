"""How long it takes until a claim of a dead worker or host is taken over: nightly, and printed.

One worker holds the claim; a worker of another host is idle. A worker that comes back finds its
claim done or taken over.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.sharedfs import mounted
from tests.sharedfs.conftest import make_scratch, need_root
from tests.sharedfs.hosts import Host
from tests.sharedfs.trial import Trial

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
Tell = Callable[[str], None]
SYSTEMS = ("nfs 3", "nfs 4.2", "glusterfs", "moosefs", "juicefs", "cephfs", "sshfs")
NO_CABLE = ("juicefs", "sshfs")
"""Their servers are files and pipes here."""
NOTICING = {"sshfs": 12.0}
"""The leases on file systems that show changes late; on the others it is 3 s."""


@dataclass
class Scene:
    """Two hosts that share a directory, and its name."""

    name: str
    hosts: list[Host]
    tell: Tell

    def trial(self, what: str) -> Trial:
        """Let one of the hosts hold a claim."""
        self.what = what
        lease_s = NOTICING.get(self.name, 3.0)
        return Trial(self.hosts, f"{self.name} {what}".replace(" ", "-"), lease_s=lease_s)

    def report(self, took_s: float, more: str = "") -> None:
        """Report how long it took."""
        lease_s = NOTICING.get(self.name, 3.0)
        took = f"{self.what}: taken over {took_s:.1f} s later{more}"
        self.tell(f"{self.name}, lease {lease_s:g} s, {took}")


@pytest.fixture
def scene(request: pytest.FixtureRequest, tell: Tell) -> Iterator[Scene]:
    """The file system of this name, fresh, unless it is NFS."""
    need_root()
    name = request.param
    with ExitStack() as stack:
        if name.startswith("nfs"):
            lan = request.getfixturevalue("lan")
            yield Scene(name, lan.clients(name[4:]), tell)
            return
        scratch = make_scratch()
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        options = {"lag_s": 2} if name == "sshfs" else {}
        hosts = stack.enter_context(getattr(mounted, name)(scratch, **options))
        yield Scene(name, hosts, tell)


on_every_system = pytest.mark.parametrize("scene", SYSTEMS, indirect=True)
on_a_cable = pytest.mark.parametrize(
    "scene", [name for name in SYSTEMS if name not in NO_CABLE], indirect=True
)


@on_every_system
def test_a_worker_that_is_killed_costs_an_attempt_of_what_it_held(scene: Scene) -> None:
    trial = scene.trial("worker killed")
    held = trial.strike(lambda: trial.workers[trial.victim.name].send(signal.SIGKILL))
    took_s = trial.recovered(held)
    assert trial.tally()["recovered"] == len(held)
    scene.report(took_s)


@on_every_system
def test_a_frozen_host_loses_its_claims_and_harms_nothing_when_it_thaws(scene: Scene) -> None:
    trial = scene.trial("host frozen")
    held = trial.strike(trial.victim.freeze)
    try:
        took_s = trial.recovered(held)
    finally:
        trial.victim.thaw()
    trial.zombie_leaves()
    assert trial.tally()["recovered"] == len(held)
    scene.report(took_s)


@on_a_cable
def test_a_host_that_is_cut_off_and_comes_back_finds_its_claims_gone(scene: Scene) -> None:
    trial = scene.trial("host cut off")
    held = trial.strike(trial.victim.unplug)
    try:
        took_s = trial.recovered(held)
    finally:
        trial.victim.plug()
    back_s = trial.zombie_leaves()
    assert trial.tally()["recovered"] == len(held)
    scene.report(took_s, f"; its worker left {back_s:.1f} s after the cable was back")


@on_every_system
def test_a_host_that_loses_power_costs_an_attempt_of_what_it_held(
    scene: Scene, request: pytest.FixtureRequest
) -> None:
    trial = scene.trial("host without power")
    held = trial.strike(trial.victim.power_off)
    if scene.name.startswith("nfs"):
        lan = request.getfixturevalue("lan")
        request.addfinalizer(lambda: lan.boot(trial.victim.name).ready())
    took_s = trial.recovered(held)
    assert trial.tally()["recovered"] == len(held)
    scene.report(took_s)


@on_every_system
def test_doctor_calls_each_of_them_fit_and_says_how_late_things_are_seen(scene: Scene) -> None:
    words = ("doctor", "--peer", "--wait", "120", "--json")
    doctors = [host.fsqueue(*words, host.share) for host in scene.hosts]
    found = [(doctor.reap(deadline_s=180.0), doctor.said()) for doctor in doctors]
    assert [status for status, _ in found] == [0, 0], found
    said = json.loads(found[0][1][0])
    texts = [
        each["text"] for each in said["findings"] if each["name"] in ("listing", "hosts flock")
    ]
    scene.tell(f"{scene.name}, doctor --peer: {'; '.join(texts)}; --lease {said['lease_s']:g}s")

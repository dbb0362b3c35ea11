"""What only NFS does: replies lost with a server, and delegations kept for dead clients.

Hosts that freeze, are cut off or lose power are in `test_recovery.py`, for every file system.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.sharedfs.nfs import Lan
from tests.sharedfs.trial import Trial
from tests.support.processes import wait_for

pytestmark = pytest.mark.slow
Tell = Callable[[str], None]
MOVED = ("running/", "workers/", "status/", "spools/", "cpu0/", "errors/", "inbox/")


def promised(lan: Lan) -> list[str]:
    """Return the end of the name of each file that the server has delegated to a client."""
    states = lan.server.run("sh", "-c", "cat /proc/fs/nfsd/clients/*/states")
    return [line.split('filename: "')[1] for line in states.splitlines() if "type: deleg" in line]


def test_no_worker_and_no_watcher_is_promised_a_file_that_others_move(lan: Lan) -> None:
    """Otherwise its death would block others for as long as the server believes it alive."""
    trial = Trial(lan.clients("4.2"), "promises")
    trial.other.run("cat", f"{trial.pool(trial.other)}/../inputs/claim1")
    for command in ("status", "workers"):
        watching = trial.other.fsqueue(command, trial.pool(trial.other), "--json")
        assert watching.reap() in (0, 3, 5), watching.said()
    found = promised(lan)
    assert any(name.startswith("inputs/") for name in found), "this server promises nothing"
    assert not [name for name in found if name.startswith(MOVED)]
    trial.tally()


@pytest.mark.nightly
def test_a_watcher_whose_host_dies_does_not_delay_other_beats(lan: Lan) -> None:
    trial = Trial(lan.clients("4.2"), "watched", lease_s=8.0)
    watched, watcher = trial.victim, trial.other
    watch = watcher.fsqueue("watch", trial.pool(watcher), "--interval", "0.5")
    wait_for(lambda: watch.said()[0], "the watcher to have looked")

    def beat() -> int:
        names = lan.server.run("ls", f"/mnt/export/{trial.name}/pool/workers").split()
        return max(int(n.rpartition(".b")[2]) for n in names if n.startswith(watched.name))

    watcher.freeze()
    seen = beat()
    wait_for(lambda: beat() >= seen + 8, "eight more beats")
    watcher.thaw()
    assert "late: was this process stopped" not in trial.workers[watched.name].said()[1]
    trial.tally()


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["4.2", "3"])
def test_replies_that_are_lost_while_the_server_reboots_lose_and_double_nothing(
    version: str, lan: Lan, tell: Tell
) -> None:
    """What was done, and could not be reported, is asked again of a server that forgot it."""
    trial = Trial(lan.clients(version), f"lost-replies-{version}", claims=8)
    lan.mute(trial.victim.name)
    time.sleep(2.0)  # its beats and its claims' moves are done meanwhile, and not answered
    begun = time.monotonic()
    lan.server.kill()
    lan.boot("server", rebooted=True).ready()
    trial.tally()
    tell(f"nfs {version}, lost replies: all done {time.monotonic() - begun:.0f} s after the crash")

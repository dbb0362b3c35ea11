"""Workers on hosts whose clocks differ by an hour: only times may show it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue.pool import plans
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Process, lease_names, look_at_process, proof_of_life
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.records.status import Status, read_statuses
from tests.support.clocks.hosts import Host, unshare
from tests.support.planning import counts, make_inputs, names_in, plan_command
from tests.support.processes import fsqueue, wait_for

pytestmark = pytest.mark.slow

LEASE_S = 1.0
AHEAD, BEHIND = Host("ahead", wall_s=3600, up_s=7200), Host("behind", up_s=60)
PROGRAM = 'case "$1" in */in000) until [ -e "$2" ]; do sleep 0.05; done;; esac; cat "$1"'
"""The largest claim, which is taken first, waits for a gate."""


class Sites:
    """A pool, and the workers started on its hosts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gate = root / "gate"
        argv = ["sh", "-c", PROGRAM, "sh", "{input}", str(self.gate)]
        inputs = make_inputs(root / "in", 8)
        self.pool: PoolDirectory = plan_command(root / "pool", inputs, argv, lease_s=LEASE_S)
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, host: Host) -> None:
        """Start a worker there that stays until it is ordered to leave."""
        words = (
            "work",
            self.pool.root,
            "--spool",
            "cpu0",
            "--keep-alive",
            "--steal-interval",
            "0.2",
        )
        self.started[host.name] = host.start(*words, log=self.root / f"{host.name}.log")

    def worker(self, host: Host) -> Status:
        """Return what the worker on a host reports, once it does."""
        found = wait_for(
            lambda: [s for s in read_statuses(self.pool).values() if s.host == host.name],
            f"a status from {host.name}",
        )
        return found[0]

    def holder(self, *, but: str | None = "") -> ClaimName:
        """Wait until a worker holds the claim that waits for the gate; return the claim."""

        def look() -> ClaimName | None:
            running = names_in(self.pool, State.RUNNING)
            held = (name for name in running if name.id.startswith("in000") and name.owner != but)
            return next(held, None)

        name = wait_for(look, "a worker to hold the largest claim")
        assert name is not None
        return name

    def events(self, *kinds: str) -> list[str]:
        """Return the workers that these events in all journals are about."""
        paths = Path(self.pool.directory("events")).glob("*.jsonl")
        facts = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return [fact["of"] for fact in facts if fact["event"] in kinds]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    sites = Sites(tmp_path)
    yield sites
    for process in sites.started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("first, second", [(AHEAD, BEHIND), (BEHIND, AHEAD)], ids=lambda h: h.name)
def test_a_worker_whose_clock_differs_by_an_hour_is_neither_dead_nor_stale(
    sites: Sites, first: Host, second: Host
) -> None:
    """The first holds a claim for five leases while the second only watches."""
    sites.start(first)
    held = sites.holder()
    assert held.owner == sites.worker(first).worker_id
    sites.start(second)
    wait_for(lambda: counts(sites.pool) == {"running": 1, "done": 7}, "all other claims to be done")

    before = beat_of(sites.pool, held.owner)
    wait_for(lambda: beat_of(sites.pool, held.owner) > before + 20, "five leases to pass")
    rows = json.loads(fsqueue("workers", sites.pool.root, "--json").stdout)["workers"]
    assert {row["health"] for row in rows} == {"healthy"}
    for host in (AHEAD, BEHIND):
        shown = json.loads(host.run("workers", sites.pool.root, "--json"))["workers"]
        assert {(row["health"], row["stalled"]) for row in shown} == {("healthy", False)}
    sites.gate.touch()
    wait_for(lambda: counts(sites.pool) == {"done": 8}, "the last claim to be done")

    assert sites.events("ended", "recovered") == []
    assert {name.attempt for name in names_in(sites.pool, State.DONE)} == {0}
    apart = sites.worker(AHEAD).started - sites.worker(BEHIND).started
    assert abs(apart - 3600) < 120, "the clocks did not differ"
    assert fsqueue("check", sites.pool.root).returncode == 0


@pytest.mark.parametrize("first, second", [(AHEAD, BEHIND), (BEHIND, AHEAD)], ids=lambda h: h.name)
def test_a_host_that_loses_power_is_noticed_by_any_clock(
    sites: Sites, first: Host, second: Host
) -> None:
    sites.start(first)
    held = sites.holder()
    sites.start(second)
    wait_for(lambda: counts(sites.pool) == {"running": 1, "done": 7}, "all other claims to be done")
    sites.started[first.name].kill()
    again = sites.holder(but=held.owner)
    assert again.owner == sites.worker(second).worker_id
    assert again.attempt == 1
    sites.gate.touch()
    wait_for(lambda: counts(sites.pool) == {"done": 8}, "the last claim to be done")
    assert set(sites.events("ended")) == {held.owner}


def test_plans_of_hosts_whose_clocks_differ_follow_each_other_and_are_worked_anywhere(
    tmp_path: Path,
) -> None:
    """The host that is ahead plans first; then it, the other, and this one work."""
    root = str(tmp_path / "pool")
    first, second = make_inputs(tmp_path / "in", 3), make_inputs(tmp_path / "more", 6)
    for host, inputs in ((AHEAD, first), (BEHIND, [*first, *second])):
        host.run(
            "plan", "command", root, *map(str, inputs), "--gpus", "cpu", "--", "cat", "{input}"
        )
    pool = open_pool(root)
    assert plans.numbers(pool) == [1, 2]
    assert plans.read_plan(pool, 1).created > plans.read_plan(pool, 2).created
    for host in (BEHIND, AHEAD):
        with pytest.raises(AssertionError):
            host.run("work", root, "--max-claims", "2")  # status 75: something remains
    assert fsqueue("work", root).returncode == 0
    assert counts(pool) == {"done": 9}
    assert fsqueue("check", root).returncode == 0
    assert json.loads(BEHIND.run("status", root, "--json"))["finished"] is True


def beat_of(pool: PoolDirectory, worker: str | None) -> int:
    """Return a worker's beat, or 0: a renewal can hide it from one listing."""
    return max((name.beat or 0 for name in lease_names(pool) if name.worker == worker), default=0)


def test_nothing_is_proved_of_a_process_whose_clock_starts_elsewhere() -> None:
    """In another time namespace the kernel itself gives our process another start time."""
    unshare()
    facts = json.dumps(proof_of_life())
    code = (
        "import json, sys; from fsqueue.pool.leases import look_at_process;"
        "print(look_at_process(json.loads(sys.argv[1])).name)"
    )
    command = ["unshare", "--time", "--fork", "--boottime", "3600"]
    command += [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code, facts], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "UNKNOWN\n", done.stderr
    assert look_at_process(json.loads(facts)) is Process.RUNNING

"""After a storm of kills, every view of a pool's totals is what is on the disk."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from fsqueue.monitor.snapshot import Reader
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from tests.support.planning import names_in
from tests.support.processes import fsqueue, wait_for
from tests.support.storm import OutputWatcher, Storm, StormResult, StormSettings

pytestmark = pytest.mark.slow

Totals = dict[str, int]
STATES = ("waiting", "running", "done", "failed")


class Watching(OutputWatcher):
    """A watcher of outputs that also takes snapshots: the numbers always add up."""

    def __init__(self, pool: PoolDirectory, tally: StormResult) -> None:
        super().__init__(pool, tally)
        self.reader = Reader(pool)
        self.looks = 0

    def look(self) -> None:
        super().look()
        count = self.reader.snapshot().count
        parts = (count.waiting, count.running, count.done, count.failed)
        assert sum(part.claims for part in parts) == count.planned.claims == self.tally.planned
        assert sum(part.cost for part in parts) == count.planned.cost
        self.looks += 1


class WatchedStorm(Storm):
    """A storm with snapshots all the time; at its end every worker is killed at once."""

    def __init__(self, directory: Path, settings: StormSettings) -> None:
        super().__init__(directory, settings)
        self.witness: Watching = Watching(self.pool, self.tally)

    def _is_enough(self) -> bool:
        return (
            self.tally.kills >= 10 and self.witness.looks >= 20 and on_disk(self.pool)["done"] > 0
        )

    def kill_at_random_then_all(self) -> None:
        """Kill workers at random, then all of them, so that claims stay in running/."""
        try:
            self._kill_at_random(time.monotonic() + self.settings.lasts_s)
        finally:
            self._kill_all()
        while not names_in(self.pool, State.RUNNING):  # no worker held a claim just then
            self._plan(20)
            self._workers.append(self._start())
            wait_for(lambda: names_in(self.pool, State.RUNNING), "a claim to run")
            self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()


def on_disk(pool: PoolDirectory) -> Totals:
    return {state.name.lower(): len(names_in(pool, state)) for state in State}


def seen_by(reader: Reader) -> Totals:
    count = reader.snapshot().count
    return {state: getattr(count, state).claims for state in STATES}


def reported_by(*words: str) -> Totals:
    said = json.loads(fsqueue(*words, "--json").stdout)
    assert said["planned"] == sum(said[state] for state in STATES)
    return {state: said[state] for state in STATES}


def drawn(pool: PoolDirectory) -> Totals:
    """Return the totals in the dashboard's frame."""
    frame = fsqueue("watch", pool.root, "--once").stdout
    said = re.search(r"\d%  ([\d,]+) of [\d,]+ done(.*)", frame)
    assert said is not None, frame
    found = {word: int(n.replace(",", "")) for n, word in re.findall(r"(\d[\d,]*) (\w+)", said[2])}
    return dict.fromkeys(STATES, 0) | found | {"done": int(said[1].replace(",", ""))}


def exported(pool: PoolDirectory, path: Path) -> Totals:
    """Return the totals exported to Prometheus."""
    fsqueue("watch", pool.root, "--once", "--metrics-only", "--textfile", path)
    found = re.findall(r'fsqueue_claims\{.*state="(\w+)"\} (\d+)', path.read_text())
    return {state: int(count) for state, count in found}


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    return seed


def test_after_a_storm_of_kills_every_view_of_the_totals_is_what_is_on_disk(
    tmp_path: Path, seed: int
) -> None:
    settings = StormSettings(seed, claims=300, lasts_s=5.0, pause_max_s=0.3, attempts=2)
    storm = WatchedStorm(tmp_path, settings)
    storm.kill_at_random_then_all()
    pool, true = storm.pool, on_disk(storm.pool)
    assert true["running"] > 0, true

    def assert_every_view_is_true() -> None:
        assert seen_by(storm.witness.reader) == true  # it looked all the time
        assert seen_by(Reader(pool)) == true  # it never looked before
        assert reported_by("status", pool.root) == true
        assert reported_by("watch", pool.root, "--once") == true
        assert drawn(pool) == true
        assert exported(pool, tmp_path / "pool.prom") == true

    assert_every_view_is_true()
    # What workers report is only displayed: without it, or with lies, all totals stay (I8).
    liars = [name for name in os.listdir(pool.directory("status")) if name.endswith(".json")]
    shutil.rmtree(pool.directory("events"))
    for name in liars:
        lie = {"worker_id": name[:-5], "state": "running", "claims_done": 10**6, "written_at": 1}
        Path(pool.directory("status"), name).write_text(json.dumps(lie))
    assert_every_view_is_true()
    # A claim is put back with mv; the next snapshot shows it.
    name = names_in(pool, State.RUNNING)[0]
    os.rename(pool.owned(State.RUNNING, name), pool.waiting("cpu0", name.returned(failed=True)))
    true = dict(Counter(true) + Counter(waiting=1) - Counter(running=1))
    true = dict.fromkeys(STATES, 0) | true
    assert true == on_disk(pool)
    assert_every_view_is_true()

"""Storms: real workers, SIGKILL at random, and every output exactly once and whole.

Twenty storms of a minute each: scripts/bench/storm.py --runs 20
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from tests.support.planning import counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import Start, fsqueue
from tests.support.storm import Storm, StormResult, StormSettings
from tests.support.storm_of_life import Life, LifeSettings
from tests.support.storm_with_faults import faulty_settings, faulty_storm

pytestmark = pytest.mark.slow


@pytest.fixture
def seed() -> int:
    """A different seed in every run; pytest shows it when the test fails."""
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    return seed


def assert_nothing_was_lost_doubled_or_torn(tally: StormResult) -> None:
    assert not tally.problems, "\n".join(tally.problems)
    assert (tally.lost, tally.doubled, tally.torn, tally.strangers) == (0, 0, 0, 0)
    assert tally.done + tally.failed == tally.planned


def test_every_output_is_there_once_and_whole_after_a_storm(tmp_path: Path, seed: int) -> None:
    storm = Storm(tmp_path, StormSettings(seed, claims=160, lasts_s=10.0, hits_min=15))
    tally = storm.run()
    print(tally)
    assert_nothing_was_lost_doubled_or_torn(tally)
    assert tally.failed == 0
    assert tally.returned >= tally.hits
    assert tally.recovered > 0


def test_claims_that_are_hit_too_often_fail_with_their_whole_history(
    tmp_path: Path, seed: int
) -> None:
    settings = StormSettings(
        seed,
        claims=6,
        workers=3,
        lasts_s=60.0,
        aimed=True,
        pause_min_s=3.0,
        pause_max_s=4.0,
        attempts=2,
        further_claims=0,
    )
    storm = Storm(tmp_path, settings)
    tally = storm.run()
    print(tally)
    assert_nothing_was_lost_doubled_or_torn(tally)
    assert tally.failed > 0
    for name in names_in(storm.pool, State.FAILED):
        assert name.attempt == 1
        for attempt in range(2):
            record = json.loads(Path(storm.pool.error(name.id, attempt)).read_text())
            assert record["error"].startswith("worker lost")


def test_a_claim_that_kills_its_workers_fails_after_the_last_attempt_and_no_other_does(
    start: Start, tmp_path: Path
) -> None:
    """Poison: the program sends SIGKILL to the worker that runs it."""
    inputs = make_inputs(tmp_path / "in", 6)
    script = "case $1 in *in002) kill -9 $PPID; exec sleep 1000;; esac; echo fine"
    pool = plan_command(tmp_path / "pool", inputs, ("sh", "-c", script, "sh", "{input}"))
    statuses = []
    while not statuses or statuses[-1] == -9:
        statuses.append(start("work", pool.root, "--steal-interval", "0.2").reap())
    assert statuses == [-9, -9, -9, 3]
    assert counts(pool) == {"done": 5, "failed": 1}
    (id,) = ids(pool, State.FAILED)
    assert sorted(os.listdir(pool.directory("errors"))) == [f"{id}.a{n}.json" for n in range(3)]
    assert fsqueue("check", pool.root).returncode == 0


@pytest.mark.parametrize("lasts_s", [15.0, pytest.param(300.0, marks=pytest.mark.nightly)])
def test_nothing_is_lost_doubled_or_torn_when_workers_and_disk_fail_in_every_way(
    tmp_path: Path, seed: int, lasts_s: float
) -> None:
    """Twenty of them: scripts/bench/storm.py --harsh --runs 20 --lasts 40"""
    with faulty_storm(tmp_path, faulty_settings(seed, lasts_s=lasts_s)) as storm:
        tally = storm.run()
    print(tally)
    assert_nothing_was_lost_doubled_or_torn(tally)
    assert tally.failed == 0


def test_a_storm_counts_what_is_lost_doubled_or_torn(tmp_path: Path) -> None:
    """Do by hand what the tests above look for, or they could not fail."""
    storm = Storm(tmp_path, StormSettings(seed=1, claims=5, pause_max_s=0.01))
    pool = storm.pool
    assert fsqueue("work", pool.root).returncode == 0
    outputs = sorted(Path(pool.directory("outputs")).iterdir())
    outputs[0].write_text(outputs[0].read_text().splitlines()[0])
    storm.witness.look()
    content = outputs[1].read_text()
    outputs[1].unlink()
    outputs[1].write_text(content.replace("attempt 0", "attempt 1"))
    outputs[2].unlink()
    (gone,) = (name for name in names_in(pool, State.DONE) if name.id == outputs[4].stem)
    Path(pool.state(State.DONE), str(gone)).rename(tmp_path / "gone")
    tally = storm.witness.count()
    assert tally.torn == 1
    assert tally.replaced == 2  # the one that is another now, and the one that is no more
    assert tally.lost == 2  # the claim that is nowhere, and the output that is no more
    assert any("is planned but nowhere" in problem for problem in tally.problems)


def test_what_can_be_done_is_done_in_a_storm_of_ordinary_life(tmp_path: Path) -> None:
    """Five such storms of a thousand claims each: scripts/bench/storm.py --life --runs 5"""
    result = Life(tmp_path, LifeSettings(seed=3, claims=150, signal_every_s=3.0)).run()
    assert result.problems == []
    assert result.status == 3
    assert result.harm["purged"] == 1 and result.harm["SIGHUP"] and result.harm["stuck logs"]

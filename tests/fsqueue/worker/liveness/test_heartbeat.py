"""The heartbeat writes the status often enough, and not too often, whatever the work does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsqueue.records.status import read_status
from fsqueue.worker.liveness import heartbeat
from fsqueue.worker.liveness.heartbeat import STATUS_BUSY_S, STATUS_QUIET_S
from tests.support.interleave import interpose, refused
from tests.support.pools import Clock, ManualWorker, make_pool
from tests.support.processes import DEADLINE_S, wait_for


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[ManualWorker]:
    hand = ManualWorker(make_pool(tmp_path / "pool", "a.10"))
    yield hand
    hand.leave()


def written_in_a_minute(
    hand: ManualWorker, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]
) -> list[float]:
    """Let a minute pass on a fake clock, in the steps in which the thread wakes."""
    clock, at = Clock(), []
    end = clock.now + 60.0

    def wait(seconds: float) -> bool:
        clock.forward(seconds)
        happens()
        return clock.now >= end

    monkeypatch.setattr(heartbeat.time, "monotonic", clock)
    monkeypatch.setattr(hand.beat._finished, "wait", wait)
    monkeypatch.setattr(hand.beat, "flush", lambda: at.append(clock.now))
    hand.beat.run()
    return at


def test_while_busy_the_status_is_written_every_two_seconds_and_no_more(
    hand: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = written_in_a_minute(hand, monkeypatch, lambda: hand.beat.change(lambda status: None))
    gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
    assert len(at) >= 25 and all(STATUS_BUSY_S <= gap <= STATUS_BUSY_S + 0.5 for gap in gaps)


def test_when_nothing_changes_the_status_is_written_every_thirty_seconds(
    hand: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> None:
        hand.beat._changed = False

    at = written_in_a_minute(hand, monkeypatch, nothing)
    assert len(at) == 1 or STATUS_QUIET_S <= at[1] - at[0] <= STATUS_QUIET_S + 0.5


@pytest.mark.slow
def test_work_that_never_rests_does_not_starve_the_status(
    hand: ManualWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working thread holds the interpreter lock all the time, as loading a model may."""
    monkeypatch.setattr(heartbeat, "STATUS_QUIET_S", 0.0)
    seen: set[float] = set()

    def work_and_look() -> bool:
        sum(number * number for number in range(200_000))
        status = read_status(hand.pool, hand.id)
        seen.add(status.written_at if status is not None else 0.0)
        return len(seen) > 3

    hand.beat.start()
    wait_for(work_and_look, "four statuses", deadline_s=DEADLINE_S)
    hand.beat.stop()


# ---- what is said when the pool cannot be reached ----


def beats(hand: ManualWorker, count: int) -> None:
    for _ in range(count):
        hand.beat._beat()


def test_a_failed_renewal_is_logged_once_in_a_long_outage(
    hand: ManualWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One missed beat is not reported, and an outage is reported once."""
    with monkeypatch.context() as patch:
        interpose(patch, rename=refused(errno.EIO, times=1))
        beats(hand, 2)
    assert caplog.messages == []
    for outage in (1, 2):
        with monkeypatch.context() as patch:
            interpose(patch, rename=refused(errno.EIO, times=5))
            beats(hand, 6)
        assert [text for text in caplog.messages if "could not be renewed" in text] == (
            caplog.messages
        )
        assert len(caplog.messages) == outage
    assert hand.beat.lost is None


def test_orders_that_cannot_be_read_do_not_count_as_a_missed_beat(
    hand: ManualWorker, caplog: pytest.LogCaptureFixture
) -> None:
    os.rmdir(hand.pool.directory("control"))
    before = hand.lease.name.beat or 0
    beats(hand, 3)
    assert hand.lease.name.beat == before + 3
    (message,) = caplog.messages
    assert message.startswith("orders cannot be read (")
    os.mkdir(hand.pool.directory("control"))
    beats(hand, 1)
    assert len(caplog.messages) == 1


def test_the_energy_of_a_gpu_is_its_power_over_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    hand = ManualWorker(make_pool(tmp_path / "pool"))
    for now[0], watts in ((0.0, 300.0), (60.0, 300.0), (120.0, None), (180.0, 1e9), (240.0, 120.0)):
        hand.beat._note_gpu({"power_watts": watts})
    assert hand.status.energy_wh == pytest.approx(5.0 + 2.0)


def test_workers_that_share_a_gpu_count_its_energy_once_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    hand = ManualWorker(make_pool(tmp_path / "pool"))
    for now[0] in (0.0, 60.0):
        hand.beat._note_gpu({"power_watts": 300.0, "workers": 2})
    assert hand.status.energy_wh == pytest.approx(2.5)

"""Statuses and journals may be missing, cut or hostile; no work depends on them (I8)."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.records.journal import Journal, JournalReader, read_events
from fsqueue.records.status import (
    Current,
    Status,
    WorkerState,
    parse_status,
    read_status,
    read_statuses,
    write_status,
)
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import number, printable
from fsqueue.worker.liveness import heartbeat
from fsqueue.worker.liveness.heartbeat import Heartbeat
from tests.support.interleave import interpose, refused
from tests.support.pools import ManualWorker, make_pool, problems, state_counts
from tests.support.processes import wait_for

ME = "me-1-aaaaaa"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(asdict(Status("x")))
CURRENT_FIELDS = sorted(asdict(Current("?", "?", 0, 0, "?", 0.0)))
HUGE = 10**400

DAMAGE = {
    "empty": b"",
    "half written": b'{"worker_id": "me-1-aaaaaa", "sta',
    "no object": b"[]",
    "null": b"null",
    "not text": b"\xff\xfe",
    "NULs": b"\0" * 100,
    "deep nesting": b'{"a":' * 50_000,
    "a number of 5000 digits": b'{"pid": ' + b"9" * 5000 + b"}",
    "another worker's": b'{"worker_id": "you-2-bbbbbb"}',
    "nobody's": b'{"worker_id": null}',
}


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def hostile(**facts: Any) -> Status:
    status = parse_status(ME, {"worker_id": ME} | facts)
    assert status is not None
    return status


# ---- status ----


def test_a_status_is_read_as_it_was_written(pool: PoolDirectory) -> None:
    status = Status(ME, host="node7", pid=7, spool="gpu0", rates={"k": 2.5}, loaded=["k"])
    status.current = Current("x", "k", 3, 0, "gpu0", 1e9, done=1, total=2, measures={"units": 5})
    write_status(pool, status)
    assert read_status(pool, ME) == status
    assert read_statuses(pool) == {ME: status}
    assert os.listdir(pool.directory("status")) == [f"{ME}.json"]


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_status_is_as_good_as_none(pool: PoolDirectory, data: bytes) -> None:
    Path(pool.status(ME)).write_bytes(data)
    assert read_status(pool, ME) is None
    assert read_statuses(pool) == {}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/hosts", path)])
def test_special_files_are_not_read_as_a_status(
    pool: PoolDirectory, make: Callable[[str], object]
) -> None:
    make(pool.status(ME))
    assert read_status(pool, ME) is None


def test_no_status_is_read_for_an_invalid_worker_name(pool: PoolDirectory) -> None:
    for text in ("x y.json", "README", ".me.json", "a\nb.json"):
        Path(pool.directory("status"), text).write_bytes(b"{}")
    assert read_statuses(pool) == {}


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_every_field_of_a_status_has_its_type_whatever_the_file_holds(
    facts: dict[str, Any],
) -> None:
    status = parse_status(ME, facts | {"worker_id": ME})
    assert status is not None
    for name, default in asdict(Status(ME)).items():
        value = getattr(status, name)
        if isinstance(default, bool):
            assert isinstance(value, bool), name
        elif isinstance(default, int | float):
            assert number(value) is not None, name
            assert isinstance(default, float) or value % 1 == 0, name
        elif name not in ("spool", "current"):
            assert isinstance(value, type(default)), name
    assert status.state in set(WorkerState)
    assert status.spool is None or isinstance(status.spool, str)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(CURRENT_FIELDS), JSON))
def test_every_field_of_the_current_claim_has_its_type_whatever_the_file_holds(
    facts: dict[str, Any],
) -> None:
    current = hostile(current=facts).current
    assert current is not None
    for name in ("id", "kind", "spool", "unit"):
        assert isinstance(getattr(current, name), str)
    for name in ("cost", "attempt", "done", "total", "started"):
        assert number(getattr(current, name)) is not None
    assert all(number(count) is not None for count in current.measures.values())


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), HUGE, True, "7", None]
)
def test_a_number_that_cannot_be_reckoned_with_keeps_its_default(value: Any) -> None:
    status = hostile(weight=value, pid=value, busy_s=value, rates={"k": value})
    assert (status.weight, status.pid, status.busy_s, status.rates) == (1.0, 0, 0.0, {})


@pytest.mark.parametrize("value", [float("inf"), ["x"], {"x": 1}, None, 7])
def test_lists_and_tables_of_texts_hold_only_texts(value: Any) -> None:
    status = hostile(
        loaded=["k", value], capabilities=[value], slurm={"k": value}, services_status={"k": value}
    )
    assert (status.loaded, status.capabilities) == ([], [])
    assert (status.slurm, status.services_status) == ({}, {})


@pytest.mark.parametrize("current", ["x", 7, [], None, True])
def test_a_current_claim_must_be_an_object(current: Any) -> None:
    assert hostile(current=current).current is None


def test_an_unknown_state_is_shown_as_failed() -> None:
    assert hostile(state="\x1b[31mfine").state == "failed"


@pytest.mark.parametrize(
    ("value", "result"),
    [(7, 7), (1.5, 1.5), (0, 0), (-3, -3), (True, None), (float("nan"), None),
     (float("inf"), None), (HUGE, None), ("7", None), (None, None), ([], None)],
)  # fmt: skip
def test_a_number_is_safe_to_calculate_with(value: Any, result: float | None) -> None:
    assert number(value) == result


@given(st.text())
def test_text_is_made_printable_on_one_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert printable("\x1b[2Jgone\n") == "\\x1b[2Jgone\\n"
    assert len(printable("x" * 1000)) == 300


# ---- the journal ----


def test_a_journal_is_one_object_a_line_and_is_read_back(pool: PoolDirectory) -> None:
    journal = Journal(pool, ME)
    journal.write("took", id="x\n", cost=3)
    journal.write("finished", id="x", where=Path("/somewhere"))
    journal.close()
    read = list(read_events(pool.events(ME)))
    assert [event["event"] for event in read] == ["took", "finished"]
    assert read[0]["worker"] == ME
    assert read[0]["id"] == "x\n"


def test_a_journal_that_was_never_written_to_has_no_file(pool: PoolDirectory) -> None:
    Journal(pool, ME).close()
    assert os.listdir(pool.directory("events")) == []


def test_events_are_read_on_from_where_the_last_look_stopped(pool: PoolDirectory) -> None:
    journal = Journal(pool, ME)
    journal.write("took")
    reader = JournalReader(pool.events(ME))
    assert [event["event"] for event in reader.events()] == ["took"]
    journal.write("finished")
    assert [event["event"] for event in reader.events()] == ["finished"]
    assert list(reader.events()) == []


def test_invalid_lines_are_skipped_and_the_others_are_read(
    pool: PoolDirectory,
) -> None:
    good = b'{"event": "took"}\n'
    lines = [b"\n", b"{\n", b"[]\n", b"7\n", b'{"event": 7}\n', b"\xff\xfe\n", b"\0\0\0" + good]
    lines += [b'{"event":' * 20_000 + b"\n", b"9" * 5000 + b"\n", good, b'{"event": "half']
    Path(pool.events(ME)).write_bytes(b"".join(lines))
    assert list(read_events(pool.events(ME))) == [{"event": "took"}] * 2


def test_a_missing_journal_has_no_events(pool: PoolDirectory) -> None:
    assert list(read_events(pool.events(ME))) == []
    os.mkdir(pool.events(ME))
    assert list(read_events(pool.events(ME))) == []


# ---- I8: none of it stops the work ----


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_journal_on_a_full_disk_costs_a_line_and_nothing_else(
    pool: PoolDirectory, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(pool, ME)
    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, **{where: refused(errno.ENOSPC)})
        journal.write("lost")
        journal.close()
    journal.write("kept")
    journal.close()
    assert [event["event"] for event in read_events(pool.events(ME))][-1] == "kept"


def test_a_journal_that_cannot_be_written_leaves_no_descriptor_open(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(pool, ME)
    before = len(os.listdir("/proc/self/fd"))
    interpose(monkeypatch, write=refused(errno.ENOSPC))
    for _ in range(10):
        journal.write("lost")
    journal.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("sample", [{"gpu": object()}, ZeroDivisionError("the driver went away")])
def test_a_status_that_cannot_be_made_does_not_end_the_heartbeat(
    tmp_path: Path, sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes the status renews the lease: if it died, so would the worker."""
    pool = create_pool(str(tmp_path / "pool"), lease_s=0.08)
    monkeypatch.setattr(heartbeat, "STATUS_BUSY_S", 0.0)
    monkeypatch.setattr(heartbeat, "STATUS_QUIET_S", 0.0)
    hand = ManualWorker(pool)
    sampled = []

    def ask() -> dict[str, Any]:
        sampled.append(hand.lease.name.beat)
        if isinstance(sample, Exception):
            raise sample
        return dict(sample)

    hand.beat = Heartbeat(pool, hand.lease, hand.status, sample_gpu=ask)
    hand.beat.start()
    wait_for(lambda: len({*sampled}) > 2, "the lease to be renewed after a status failed")
    hand.beat.stop()
    assert hand.beat.lost is None
    hand.leave()


def test_i8_a_worker_goes_on_when_status_and_events_are_deleted_under_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3", "b.2", "c.1", weights=(1.0, 1.0))
    hand = ManualWorker(pool, "gpu0")
    hand.beat.flush()
    hand.run(hand.take())
    for name in ("status", "events"):
        shutil.rmtree(pool.directory(name))
    hand.beat.flush()
    hand.run(hand.take())
    hand.run(hand.take())  # from the other spool: the thief looks for others' statuses
    hand.beat.flush()
    assert hand.sweep() == []
    hand.leave()
    assert state_counts(pool) == {State.DONE: 3}
    assert {problem.partition(" is not")[0] for problem in problems(pool)} == {
        pool.directory("status"),
        pool.directory("events"),
    }


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text().filter(lambda key: key not in ("t", "event", "worker")), anything))
def test_every_line_of_a_journal_is_json(facts: dict[str, Any]) -> None:
    lines: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "Appender", lambda path: SimpleNamespace(line=lines.append))
        Journal(PoolDirectory("/p", "id", 30.0, 3), ME).write("warning", **facts)
    event = json.loads(lines[0])
    assert {key: event[key] for key in event if key not in ("t", "event", "worker")} == facts


def test_a_claims_line_is_written_without_an_encoder(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two events per claim: an encoder for each was a fifth of a claim's cost."""
    monkeypatch.setattr(json, "dumps", lambda *_, **__: pytest.fail("an encoder was made"))
    name = ClaimName("a", "k", 7, 1)
    journal = Journal(pool, ME)
    journal.claim("took", name, spool="gpu0")
    journal.claim("finished", name, seconds=0.25, sequences=3)
    journal.close()
    took, finished = read_events(pool.events(ME))
    assert {key: took[key] for key in ("event", "worker", "id", "kind", "cost", "attempt")} == {
        "event": "took", "worker": ME, "id": "a", "kind": "k", "cost": 7, "attempt": 1
    }  # fmt: skip
    assert (took["spool"], finished["seconds"], finished["sequences"]) == ("gpu0", 0.25, 3)

"""A trace has a lane per worker, a slice per attempt, and an arrow per steal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fsqueue.history.attempts import Attempted
from fsqueue.history.trace import records
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.support.monitor_data import write_events
from tests.support.processes import fsqueue

A, B = "node7-1-aaaaaa", "node8-2-bbbbbb"


def attempted(id: str, worker: str, started: float | None, **facts: Any) -> Attempted:
    host = worker.partition("-")[0]
    return Attempted(id, worker, host, facts.pop("ending", "done"), started, **facts)


@pytest.fixture
def drawn() -> list[dict[str, Any]]:
    return list(
        records(
            [
                attempted("a", A, 1000.0, seconds=2.0, spool="gpu0"),
                attempted("b", A, 1002.5, seconds=1.0, spool="gpu1", stolen=True, cost=5),
                attempted("c", B, 1001.0, seconds=4.0, ending="failed", error="boom"),
                attempted("d", B, 1006.0, ending="running"),
                attempted("e", B, None, seconds=1.0),
            ]
        )
    )


def named(drawn: list[dict[str, Any]], name: str) -> dict[Any, str]:
    keys = ("pid",) if name == "process_name" else ("pid", "tid")
    return {tuple(r[k] for k in keys): r["args"]["name"] for r in drawn if r["name"] == name}


def test_each_worker_has_a_lane_on_its_host_and_each_robbed_spool_one(
    drawn: list[dict[str, Any]],
) -> None:
    hosts, lanes = named(drawn, "process_name"), named(drawn, "thread_name")
    places = {(hosts[pid,], lane) for (pid, _), lane in lanes.items()}
    spools = "spools: claims stolen from them"
    assert places == {("node7", A), ("node8", B), (spools, "gpu1")}


def test_each_attempt_is_a_slice_of_its_time_in_microseconds(drawn: list[dict[str, Any]]) -> None:
    lanes = named(drawn, "thread_name")
    slices = {
        (lanes[r["pid"], r["tid"]], r["name"]): (r["ts"], r.get("dur"))
        for r in drawn
        if r["ph"] in "XB" and r["cat"] != "steal"
    }
    assert slices == {
        (A, "a"): (1_000_000_000, 2_000_000),
        (A, "b"): (1_002_500_000, 1_000_000),
        (B, "failed: c"): (1_001_000_000, 4_000_000),
        (B, "d"): (1_006_000_000, None),
    }


def test_what_still_runs_is_open_to_the_right(drawn: list[dict[str, Any]]) -> None:
    (running,) = (record for record in drawn if record["ph"] == "B")
    assert running["name"] == "d" and not [record for record in drawn if record["ph"] == "E"]


def test_what_ended_unseen_spans_nothing_that_came_after_it() -> None:
    unseen, later = attempted("a", A, 10.0, ending="unknown"), attempted("b", A, 20.0, seconds=1.0)
    drawn = [r for r in records([unseen, later]) if r["ph"] != "M"]
    assert [(r["ph"], r["name"], r["dur"]) for r in drawn] == [
        ("X", "unknown: a", 1),
        ("X", "b", 1_000_000),
    ]


def test_each_steal_is_an_arrow_between_two_slices(drawn: list[dict[str, Any]]) -> None:
    """Perfetto draws a flow only where a slice of that lane spans each of its ends."""
    (start,), (end,) = ([r for r in drawn if r["ph"] == ph] for ph in "sf")
    assert start["id"] == end["id"] and start["ts"] <= end["ts"] and end["bp"] == "e"
    lanes = named(drawn, "thread_name")
    assert lanes[start["pid"], start["tid"]] == "gpu1" and lanes[end["pid"], end["tid"]] == A
    for arrow in (start, end):
        assert any(
            r["ph"] == "X"
            and (r["pid"], r["tid"]) == (arrow["pid"], arrow["tid"])
            and r["ts"] <= arrow["ts"] <= r["ts"] + r["dur"]
            for r in drawn
        )


def test_a_lane_is_named_before_anything_is_on_it(drawn: list[dict[str, Any]]) -> None:
    seen: set[tuple[int, int]] = set()
    for record in drawn:
        if record["name"] == "thread_name":
            seen.add((record["pid"], record["tid"]))
        assert record["ph"] == "M" or (record["pid"], record["tid"]) in seen


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    pool = create_pool(str(tmp_path / "pool"))
    facts = {"id": "x-1", "from": "gpu1", "cost": 5, "attempt": 0}
    write_events(
        pool, A, {"t": 10, "event": "stole"} | facts, {"t": 12, "event": "finished", "id": "x-1"}
    )
    return pool


@pytest.mark.slow
def test_the_trace_is_one_json_document_written_whole(pool: PoolDirectory, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    assert fsqueue("trace", pool.root, "-o", path).returncode == 0
    printed = fsqueue("trace", pool.root).stdout
    assert path.read_text() == printed
    assert [r["ph"] for r in json.loads(printed)["traceEvents"] if r["ph"] != "M"] == list("XXsf")
    assert sorted(os.listdir(tmp_path)) == ["pool", "trace.json"]
    bad = fsqueue("trace", pool.root, "-o", tmp_path / "no" / "trace.json")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_trace_of_an_empty_pool_is_a_document_too(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "empty"))
    assert json.loads(fsqueue("trace", pool.root).stdout) == {"traceEvents": []}

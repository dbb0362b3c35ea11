"""What becomes of workers' time is added up, shown, and believed only where it can be true."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fsqueue.cli.status import _print_status
from fsqueue.dashboard.board import View, board
from fsqueue.handler import Computing
from fsqueue.metrics.prometheus import exposition
from fsqueue.monitor.gpu_hours import GpuHours, gpu_hours
from fsqueue.monitor.json_documents import status_facts
from fsqueue.monitor.snapshot import Reader
from fsqueue.monitor.time_use import TimeUse, sentence, time_use
from fsqueue.pool.requirements import Tier
from fsqueue.records.status import Status, parse_status, write_status
from tests.support.monitor_data import snapshot, spool_row, worker_row
from tests.support.pools import make_pool

HALF = TimeUse(50.0, 10.0, 25.0, 3.0)


def spent(**changes: float) -> dict[str, float]:
    facts = Computing(10.0, 5.0, 1.0, teraflop=20.0, reach_teraflop=80.0, peak_gib=3.0)
    return asdict(facts) | changes


def test_shares_are_of_all_time_together_and_the_peak_is_the_largest() -> None:
    status = Status("vm-1-aaaaaa")
    status.note_computing(spent())
    status.note_computing(spent(seconds=30.0, peak_gib=2.0))
    assert time_use([status.computing]) == TimeUse(25.0, 5.0, 25.0, 3.0)
    assert time_use([status.computing, spent(peak_gib=7.5)]).peak_gib == 7.5


def test_what_was_not_reported_is_unknown() -> None:
    assert time_use([]) == time_use([{}]) == TimeUse()
    assert time_use([spent(reach_teraflop=0.0)]).mfu_percent is None
    assert sentence(TimeUse()) == ""


@pytest.mark.parametrize(
    "wrong", [{"seconds": -1.0}, {"seconds": 1e-9}, {"computing_s": 1e17}, {"seconds": "10"}]
)
def test_what_cannot_be_true_is_left_out(wrong: dict[str, float]) -> None:
    use = time_use([spent(**wrong)])  # type: ignore[arg-type]
    assert use.computing_percent is None


def test_a_hostile_report_is_dropped_whole() -> None:
    facts = asdict(Status("vm-1-aaaaaa")) | {"computing": {"seconds": "never"}}
    parsed = parse_status("vm-1-aaaaaa", facts)
    assert parsed is not None and parsed.computing == {}


def test_it_is_in_the_status_of_a_pool_for_people_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_pool(tmp_path / "pool", "a.40")
    status = Status("vm-1-aaaaaa", spool="gpu0", model="H200", tier=Tier.GPU)
    status.busy_s, status.energy_wh = 7200.0, 1500.0
    status.note_computing(spent())
    write_status(pool, status)
    now = Reader(pool).snapshot()
    facts = json.loads(json.dumps(status_facts(now)))
    assert (facts["computing_percent"], facts["mfu_percent"], facts["peak_gib"]) == (50, 25, 3)
    assert facts["gpu_hours"] == [{"model": "H200", "workers": 1, "hours": 2.0, "kwh": 1.5}]
    _print_status(now)
    assert (
        "devices: computing 50% of their time, waiting for input 10%, at 25% of the devices' speed "
        "in products (MFU), 3.0 GiB of memory at most\n"
    ) in capsys.readouterr().out


def test_the_table_shows_it_beside_the_tokens_and_only_there() -> None:
    now = snapshot([spool_row("gpu0", time_use=HALF)], time_use=HALF)
    shown = board(now, View(rates=True), width=200, height=9)
    titles = dict(zip(shown.titles, shown.rows[0], strict=True))
    assert [titles[name][0] for name in ("comp", "feed", "MFU", "peak")] == [
        *("50%", "10%", "25%"),
        "3.0G",
    ]
    assert "MFU" not in board(now, View(), width=200, height=9).titles
    unknown = snapshot([spool_row("gpu0")])
    assert "MFU" not in board(unknown, View(rates=True), width=200, height=9).titles


def test_graphs_over_time_come_from_the_metrics_of_prometheus() -> None:
    now = snapshot([spool_row("gpu0", time_use=HALF)])
    lines = exposition(now).splitlines()
    for name, value in (("busy_ratio", "0.5"), ("mfu_ratio", "0.25")):
        (line,) = (line for line in lines if line.startswith(f"fsqueue_computing_{name}{{"))
        assert line.endswith(f" {value}")


def test_gpu_hours_are_added_up_by_model_and_cpus_have_none() -> None:
    gpu: dict[str, Any] = {"tier": Tier.GPU, "energy_wh": 500.0}
    rows = [
        worker_row("vm-1-aaaaaa", status=Status("vm-1-aaaaaa", model="L4", busy_s=3600.0, **gpu)),
        worker_row("vm-2-bbbbbb", status=Status("vm-2-bbbbbb", model="A100", busy_s=1.0, **gpu)),
        worker_row("vm-3-cccccc", status=Status("vm-3-cccccc", model="L4", busy_s=1800.0, **gpu)),
        worker_row("vm-4-dddddd", status=Status("vm-4-dddddd", model="CPU", busy_s=9e9)),
    ]
    assert gpu_hours(rows, {"vm-2-bbbbbb": 7200.0}) == [
        GpuHours("A100", 1, 2.0, 0.5),
        GpuHours("L4", 2, 1.5, 1.0),
    ]

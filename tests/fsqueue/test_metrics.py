"""The metrics log has one writer, five fields and a bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.watching import spool_row

from fsqueue import metrics
from fsqueue.metrics import HEADER, MetricsLog, metric_lines
from fsqueue.reported import Use


def test_a_line_has_the_five_fields_in_their_order() -> None:
    rows = [spool_row("gpu0"), spool_row("gpu1", items_per_s=None, use=Use(None, 40.0))]
    assert metric_lines(rows, 43_200.0) == [
        "1970-01-01T12:00:00Z,gpu0,322.60,91.00,40.00",
        "1970-01-01T12:00:00Z,gpu1,,,40.00",
    ]
    assert all(len(line.split(",")) == len(HEADER.split(",")) for line in metric_lines(rows, 0.0))


def test_workers_without_a_gpu_have_no_metrics() -> None:
    assert metric_lines([spool_row("")], 0.0) == []


def test_the_header_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.log"
    for n in range(2):
        log = MetricsLog(str(path))
        log.write([f"line {n}"])
        log.close()
    assert path.read_text().splitlines() == [HEADER, "line 0", "line 1"]


def test_only_one_of_two_watchers_writes(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.log"
    first, second = MetricsLog(str(path)), MetricsLog(str(path))
    assert (first.writing, second.writing) == (True, False)
    second.write(["torn"])
    first.write(["whole"])
    first.close()
    second.close()
    assert path.read_text().splitlines() == [HEADER, "whole"]
    third = MetricsLog(str(path))
    assert third.writing
    third.close()


def test_a_large_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BYTES_MAX", 200)
    path = tmp_path / "gpu_metrics.log"
    log = MetricsLog(str(path))
    for n in range(30):
        log.write([f"line {n:04d}"])
    log.close()
    assert path.read_text().startswith(HEADER)
    old = Path(f"{path}.1").read_text().splitlines()
    assert old[0] == HEADER and len(path.read_bytes()) <= 200

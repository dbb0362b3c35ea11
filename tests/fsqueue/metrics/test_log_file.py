"""The metrics log has one writer, five fields and a bounded size."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from fsqueue.metrics import log_file as metrics_log
from fsqueue.metrics.log_file import (
    HEADER,
    TIME_USE_HEADER,
    MetricsLog,
    metric_lines,
    time_use_lines,
)
from fsqueue.monitor.time_use import TimeUse
from fsqueue.monitor.workers import Use
from tests.support.monitor_data import finish, spool_row
from tests.support.pools import contents, make_pool
from tests.support.processes import Start, fsqueue, wait_for


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


def test_when_the_writer_ends_another_watcher_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.log"
    first, second = MetricsLog(str(path)), MetricsLog(str(path))
    first.write(["one"])
    first.close()
    second.write(["two"])
    second.close()
    assert path.read_text().splitlines() == [HEADER, "one", "two"]


def test_half_a_line_of_a_killed_writer_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.log"
    path.write_text(f"{HEADER}\n1970-01-01T12:0")
    log = MetricsLog(str(path))
    log.write(["whole"])
    log.close()
    assert path.read_text().splitlines() == [HEADER, "1970-01-01T12:0", "whole"]


def test_half_a_header_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.log"
    path.write_text(HEADER[:20])
    log = MetricsLog(str(path))
    log.write(["whole"])
    log.close()
    assert path.read_text().splitlines() == [HEADER, "whole"]


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.log"
    log = MetricsLog(str(path))
    log.write(["one"])
    path.rename(tmp_path / "old")
    log.write(["two"])
    log.close()
    assert path.read_text().splitlines() == [HEADER, "two"]


def test_a_large_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_log, "BYTES_MAX", 200)
    path = tmp_path / "gpu_metrics.log"
    log = MetricsLog(str(path))
    for n in range(30):
        log.write([f"line {n:04d}"])
    log.close()
    assert path.read_text().startswith(HEADER)
    old = Path(f"{path}.1").read_text().splitlines()
    assert old[0] == HEADER and len(path.read_bytes()) <= 220


# ---- what became of the time ----

USE = TimeUse(97.0, 2.5, None, 11.25)


def test_a_line_of_the_time_has_its_seven_fields_in_their_order() -> None:
    rows = [spool_row("gpu0", time_use=USE), spool_row("gpu1", rates={}), spool_row("")]
    assert time_use_lines(rows, 43_200.0) == [
        "1970-01-01T12:00:00Z,gpu0,80650,97.00,2.50,,11.25",
        "1970-01-01T12:00:00Z,gpu1,,,,,",
    ]
    assert len(TIME_USE_HEADER.split(",")) == 7


def test_where_no_handler_reports_any_there_is_no_log_of_the_time(tmp_path: Path) -> None:
    assert time_use_lines([spool_row("gpu0"), spool_row("gpu1")], 0.0) == []
    log = MetricsLog(str(tmp_path / "gpu_metrics.log"), str(tmp_path / "time_use.log"))
    log.write(["one"])
    assert not (tmp_path / "time_use.log").exists()
    log.write(["two"], ["of the time"])
    log.close()
    lines = (tmp_path / "time_use.log").read_text().splitlines()
    assert lines == [TIME_USE_HEADER, "of the time"]


def test_the_log_of_the_time_has_the_same_writer(tmp_path: Path) -> None:
    paths = str(tmp_path / "gpu_metrics.log"), str(tmp_path / "time_use.log")
    first, second = MetricsLog(*paths), MetricsLog(*paths)
    second.write(["torn"], ["torn"])
    first.write(["whole"], ["whole"])
    first.close()
    second.write(["next"], ["next"])
    second.close()
    assert [Path(path).read_text().splitlines()[1:] for path in paths] == [["whole", "next"]] * 2


# ---- fsqueue watch --metrics-only ----

A = "node7-1-aaaaaa"
LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ,gpu0,[0-9.]*,,"


@pytest.mark.slow
def test_metrics_only_writes_the_log_and_nothing_else(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.10", "b.10")
    before = contents(pool.root)
    for _ in range(2):
        run = fsqueue("watch", pool.root, "--metrics-only", "--once")
        assert (run.returncode, run.stdout, run.stderr) == (5, "", "")
    after = contents(pool.root)
    new = {"gpu_metrics.log", "gpu_metrics.log.lock"}
    assert after.keys() - before.keys() == new and not before.items() - after.items()
    header, *lines = Path(pool.root, "gpu_metrics.log").read_text().splitlines()
    assert header == HEADER and len(lines) == 2
    assert all(re.fullmatch(LINE, line) for line in lines)


@pytest.mark.slow
def test_of_two_that_keep_metrics_one_writes_and_the_other_goes_on_when_it_is_killed(
    tmp_path: Path, start: Start
) -> None:
    pool = make_pool(tmp_path / "pool", "a.10", "b.10")
    path = Path(pool.root, "gpu_metrics.log")
    words = ("watch", pool.root, "--metrics-only", "--interval", "0.1")
    first = start(*words)
    wait_for(path.exists, "the log of the first")
    second = start("-v", *words)
    wait_for(lambda: "another process already keeps" in second.log, "the second to see that")
    first.send(signal.SIGKILL)
    first.reap()
    size = path.stat().st_size
    wait_for(lambda: path.stat().st_size > size, "lines of the second")
    finish(pool, A)
    finish(pool, A)
    assert second.reap() == 0
    lines = path.read_text().splitlines()
    assert lines.count(HEADER) == 1
    assert all(re.fullmatch(LINE, line) for line in lines[1:])


@pytest.mark.slow
def test_json_and_metrics_only_exclude_each_other(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.10")
    run = fsqueue("watch", pool.root, "--metrics-only", "--json")
    assert run.returncode == 2 and "--json" in run.stderr

"""What Prometheus is told is well formed, true, and replaced whole; its own parser reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fsqueue.errors import UsageError
from fsqueue.metrics.prometheus import TextFile, exposition
from fsqueue.monitor.alerts import Alert, AlertKind
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.monitor.workers import Use
from tests.support.monitor_data import fail, finish, snapshot, spool_row, take, worker_row
from tests.support.pools import contents, make_pool
from tests.support.processes import fsqueue

A = "node7-1-aaaaaa"
UNITS = ("seconds", "ratio", "celsius", "watts", "total", "second")
WITHOUT_A_UNIT = {
    "fsqueue_claims",
    "fsqueue_claims_cost",
    "fsqueue_finished",
    "fsqueue_workers",
    "fsqueue_warnings",
    "fsqueue_spool_claims_waiting",
    "fsqueue_spool_cost_waiting",
    "fsqueue_spool_weight",
    "fsqueue_spool_workers",
    "fsqueue_spool_stalled",
}

Read = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Read:
    """Return every sample by its name and labels, the pool's left out."""
    found: Read = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k != "pool")
            key = sample.name, labels
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(found: Read, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.fixture
def seen() -> Snapshot:
    rows = [
        spool_row("gpu0", stolen_in=3, use=Use(91.0, 40.0, 71.0, 310.5)),
        spool_row("gpu1", items_per_s=None, eta_s=None, use=Use()),
    ]
    return snapshot(rows, warnings=(Alert(AlertKind.STALLED, "w", "text"),))


def test_the_claims_that_are_told_are_those_on_disk(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", *(f"i{n}.10" for n in range(6)))
    take(pool, A)
    finish(pool, A)
    fail(pool, A)
    found = parsed(exposition(Reader(pool).snapshot()))
    claims = {s: value(found, "fsqueue_claims", state=s) for s in "waiting running done".split()}
    assert claims == {"waiting": 3, "running": 1, "done": 1}
    assert value(found, "fsqueue_claims", state="failed") == 1
    assert value(found, "fsqueue_claims_cost", state="waiting") == 30
    assert value(found, "fsqueue_finished") == 0
    assert value(found, "fsqueue_progress_ratio") == pytest.approx(2 / 6)


def test_a_gpu_is_told_in_base_units(seen: Snapshot) -> None:
    found = parsed(exposition(seen))
    gpu = {"spool": "gpu0", "gpu": "GPU-1", "model": "NVIDIA GeForce RTX 3090", "host": "node7"}
    assert value(found, "fsqueue_gpu_utilization_ratio", **gpu) == pytest.approx(0.91)
    assert value(found, "fsqueue_gpu_memory_used_ratio", **gpu) == pytest.approx(0.4)
    assert value(found, "fsqueue_gpu_temperature_celsius", **gpu) == 71
    assert value(found, "fsqueue_gpu_power_watts", **gpu) == 310.5
    assert value(found, "fsqueue_spool_sequences_per_second", spool="gpu0") == 322.6
    assert value(found, "fsqueue_spool_claims_stolen_total", spool="gpu0") == 3
    assert value(found, "fsqueue_warnings", kind="stalled") == 1


def test_what_is_unknown_has_no_sample(seen: Snapshot) -> None:
    told = [line for line in exposition(seen).splitlines() if 'spool="gpu1"' in line]
    assert not [line for line in told if "_gpu_" in line or "sequences_per" in line]
    assert not [line for line in told if "remaining" in line or "nan" in line.lower()]


def test_names_and_types_follow_the_conventions(seen: Snapshot) -> None:
    text = exposition(seen)
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        assert f"# HELP {name} " in text and f"# TYPE {name} {family.type}" in text
        assert name in WITHOUT_A_UNIT or name.rpartition("_")[2] in UNITS, name
        assert all(
            "\n" not in sample.name and sample.timestamp is None for sample in family.samples
        )
    assert text.endswith("\n")


@pytest.mark.parametrize("hostile", ['a"b', "back\\slash", 'x"} 1\nfsqueue_claims 7', "ünïcode"])
def test_labels_are_escaped_so_that_none_can_add_a_sample(hostile: str) -> None:
    seen = snapshot([spool_row("gpu0", model=hostile, host=hostile)], pool=hostile)
    text = exposition(seen)
    found = [f for f in text_string_to_metric_families(text) if f.name == "fsqueue_gpu_power_watts"]
    assert [sample.labels["model"] for family in found for sample in family.samples] == [hostile]
    assert {s.labels["pool"] for f in text_string_to_metric_families(text) for s in f.samples} == {
        hostile
    }


def test_an_empty_pool_is_told_of_too() -> None:
    assert value(parsed(exposition(snapshot())), "fsqueue_claims", state="done") == 0


def test_the_file_is_replaced_whole(seen: Snapshot, tmp_path: Path) -> None:
    path = tmp_path / "pool.prom"
    file = TextFile(str(path))
    file.write(snapshot())
    with open(path) as old:
        file.write(seen)
        assert 'spool="gpu0"' not in old.read()  # who had it open reads the old one to its end
    assert path.read_text() == exposition(seen)
    assert os.listdir(tmp_path) == ["pool.prom"]


def test_a_file_that_cannot_be_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "x.prom", tmp_path):
        with pytest.raises(UsageError, match=r"\.prom"):
            TextFile(str(path))


def test_a_file_that_cannot_be_written_is_warned_of_once(
    seen: Snapshot, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "there"
    directory.mkdir()
    file = TextFile(str(directory / "x.prom"))
    directory.rmdir()
    file.write(seen)
    file.write(seen)
    (record,) = [r for r in caplog.records if "could not be written" in r.getMessage()]
    assert "x.prom" in record.getMessage()


@pytest.mark.slow
def test_watch_writes_the_file_beside_what_it_shows_and_changes_no_pool(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.10", "b.10")
    before = contents(pool.root)
    path = tmp_path / "pool.prom"
    run = fsqueue("watch", pool.root, "--once", "--textfile", path)
    assert run.returncode == 5 and "0 of 2 done" in run.stdout
    assert value(parsed(path.read_text()), "fsqueue_claims", state="waiting") == 2
    assert contents(pool.root) == before
    bad = fsqueue("watch", pool.root, "--once", "--textfile", tmp_path / "no" / "x.prom")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_workers_are_counted_by_state(seen: Snapshot) -> None:
    rows = (worker_row("a"), worker_row("b"), worker_row("c", health="left", holds=()))
    found = parsed(exposition(snapshot(workers=rows)))
    assert value(found, "fsqueue_workers", state="running") == 2

"""The report is one page that loads nothing, obeys nothing, and counts as `fsqueue status` does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fsqueue.history import charts, summary
from fsqueue.history.attempts import Attempted
from fsqueue.history.report import page
from fsqueue.history.summary import SLOTS_MAX, Summary
from fsqueue.pool.settings import PoolDirectory
from tests.support.monitor_data import (
    enlist,
    fail,
    finish,
    put_status,
    snapshot,
    spool_row,
    take,
    write_events,
)
from tests.support.pools import make_pool
from tests.support.processes import Start, fsqueue, wait_for

WORKER, OTHER = "node7-1-aaaaaa", "node7-2-bbbbbb"
HOSTILE = "<script>alert('x')</script>\"&\x1b[31m\udcff"


class Page(HTMLParser):
    """What a browser sees: elements with their attributes, and the text in each."""

    VOID = ("meta", "line", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, "not every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta" and not (tag in self.VOID and self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    @property
    def tiles(self) -> dict[str, str]:
        """Return the summary."""
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))

    def drawn(self, style: str) -> int:
        """Return how many rectangles are of this style."""
        return sum(tag == "rect" and facts["class"] == style for tag, facts in self.elements)


def report(pool: PoolDirectory) -> Page:
    return Page("".join(page(pool)))


@pytest.fixture
def told(tmp_path: Path) -> PoolDirectory:
    """Six claims: two done (one of them stolen), one failed, one that runs, two that wait."""
    pool = make_pool(tmp_path / "pool", *(f"input{n}.{n + 1}" for n in range(6)))
    enlist(pool, WORKER, OTHER)
    done = [finish(pool, WORKER), finish(pool, OTHER)]
    failed, runs = fail(pool, WORKER, f"boom {HOSTILE}"), take(pool, OTHER)
    write_events(
        pool, WORKER, *told_of(done[0].id, 100.0), *told_of(failed.id, 103.0, end="failed")
    )
    write_events(pool, OTHER, *told_of(done[1].id, 101.0, begin="stole"))
    write_events(pool, OTHER, {"t": 104.0, "event": "took", "id": runs.id})
    return pool


def told_of(id: str, t: float, *, begin: str = "took", end: str = "finished") -> Iterator[Any]:
    yield {"t": t, "event": begin, "id": id, "from": "gpu1", "spool": "gpu0"}
    yield {"t": t + 2, "event": end, "id": id, "seconds": 2.0, "error": HOSTILE}


@pytest.mark.slow
def test_its_totals_are_those_of_status(told: PoolDirectory, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    written = fsqueue("report", told.root, "-o", out)
    assert (written.returncode, written.stdout) == (0, ""), written.stderr
    status = json.loads(fsqueue("status", told.root, "--json").stdout)
    found = Page(out.read_text())
    assert found.tiles["done"] == f"{status['done']} of {status['planned']}" == "2 of 6"
    for name in ("failed", "running", "waiting"):
        assert found.tiles[name] == str(status[name])
    assert sorted(os.listdir(tmp_path)) == ["pool", "report.html"]
    assert fsqueue("report", told.root).stdout.startswith("<!doctype html>")
    refused = fsqueue("report", told.root, "-o", tmp_path / "none" / "report.html")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1


def test_every_attempt_is_drawn_by_how_it_ended(told: PoolDirectory) -> None:
    found = report(told)
    assert found.tiles["attempts"] == "4"
    assert found.tiles["stolen"] == "1"
    kinds = {"done stolen": 1, "failed": 1, "running": 1}
    assert {style: found.drawn(style) for style in kinds} == kinds
    assert WORKER in found.texts["td"] and OTHER in found.texts["td"]


def test_nothing_of_a_pool_is_obeyed_and_nothing_is_loaded(told: PoolDirectory) -> None:
    text = "".join(page(told))
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "a"} & {tag for tag, _ in found.elements}
    assert not [name for _, facts in found.elements for name in facts if name.startswith("on")]
    policies = [facts["content"] for tag, facts in found.elements if "http-equiv" in facts]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "url(" not in text and "@import" not in text and "http:" not in text
    assert "\x1b" not in text
    assert any("<script>alert('x')" in data for data in found.texts["summary"])
    text.encode()


def test_a_pool_in_which_nothing_happened_has_a_report(tmp_path: Path) -> None:
    found = report(make_pool(tmp_path / "pool"))
    assert found.tiles["done"] == "0 of 0"
    assert "svg" not in {tag for tag, _ in found.elements}


# ---- many attempts ----


def attempts(count: int) -> Iterator[Attempted]:
    for n in range(count):
        ending = "failed" if n % 100 == 7 else "done"
        yield Attempted(f"c{n}", f"node-{n % 4}-aaaaaa", "node", ending, 50.0 + n, 3.0)


def test_many_attempts_are_added_up_in_bounded_memory_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary, "DRAWN_MAX", 100)
    found = Summary(now=0.0).add(attempts(5000))
    assert found.drawn is None
    assert found.attempts == 5000
    assert sum(found.done.values()) == found.endings["done"] == 4950
    assert sum(sum(lane.bad.values()) for lane in found.lanes.values()) == 50
    for lane in found.lanes.values():
        assert len(lane.slots) <= SLOTS_MAX
        assert sum(lane.slots.values()) == pytest.approx(lane.busy_s) == 3 * 1250
    assert (found.first, found.last) == (50.0, 5052.0)


def test_a_clock_that_is_far_off_takes_no_more_memory() -> None:
    far = Attempted("c", "node-1-aaaaaa", "node", "done", 253402300000.0, 1.0)
    found = Summary(now=0.0).add([*attempts(10), far])
    assert sum(map(len, (found.done, *(lane.slots for lane in found.lanes.values())))) < 50


def test_when_a_worker_died_is_not_taken_for_work() -> None:
    killed = Attempted("c", "node-1-aaaaaa", "node", "killed", 10.0, 60.0)
    found = Summary(now=0.0).add([killed])
    assert found.lanes["node-1-aaaaaa"].busy_s == 0.0


# ---- live ----


def test_a_page_that_is_written_again_has_itself_loaded_again_until_all_is_done(
    tmp_path: Path,
) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    text = "".join(page(pool, every_s=30.0))
    meta = [attributes for tag, attributes in Page(text).elements if tag == "meta"]
    assert {"http-equiv": "refresh", "content": "30"} in meta
    assert "loads itself again every 30s" in text
    assert 'http-equiv="refresh"' not in "".join(page(pool)), "a page to send to someone"
    finish(pool, WORKER)
    done = "".join(page(pool, every_s=30.0))
    assert 'http-equiv="refresh"' not in done and "loads itself" not in done


def test_speed_and_gpu_use_are_drawn_from_the_metrics_log(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30", "b.20")
    finish(pool, WORKER)
    assert "GPU use" not in "".join(page(pool))
    lines = [f"1970-01-01T01:23:{n:02}Z,gpu0,{n}.5,{n},10" for n in range(0, 60, 3)]
    log = Path(pool.root, "gpu_metrics.log")
    log.write_text("\n".join(["timestamp", *lines, HOSTILE[:-1]]))
    found = Page("".join(page(pool)))
    assert "GPU use" in found.texts["h2"] and "Speed, claims per second" in found.texts["h2"]
    curves = [a for tag, a in found.elements if tag == "polyline"]
    assert len(curves) == 3 and all(str(curve["points"]).count(",") == 20 for curve in curves)
    log.write_text("\n".join(line.rsplit(",", 2)[0] + ",," for line in lines))
    assert "GPU use" not in Page("".join(page(pool))).texts["h2"]


def test_gpu_hours_and_energy_are_added_up(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30", "b.20")
    enlist(pool, WORKER)
    put_status(pool, WORKER, tier=1, energy_wh=1500.0)
    took = {"event": "took", "id": "c", "cost": 1, "attempt": 0}
    done = {"event": "finished", "id": "c", "cost": 1, "attempt": 0, "seconds": 3600}
    write_events(pool, WORKER, took | {"t": 1000}, done | {"t": 4600})
    tiles = Page("".join(page(pool))).tiles
    assert tiles["kWh of the GPUs"] == "1.500" and tiles["GPU hours at work"] == "1.00"
    assert "MFU" not in tiles and "GPUs" in Page("".join(page(pool))).texts["h2"]
    put_status(pool, WORKER, tier=1, gpu={"uuid": "GPU-a", "workers": 2})
    shared = Page("".join(page(pool))).tiles
    assert shared["GPU hours at work"] == "0.50", "the other half is its neighbour's"


def test_what_became_of_the_devices_time_is_shown_once_it_is_reported(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    enlist(pool, WORKER)
    spent = {"seconds": 10.0, "computing_s": 9.0, "feeding_s": 1.0, "peak_gib": 3.0}
    put_status(pool, WORKER, computing=spent | {"teraflop": 20.0, "reach_teraflop": 80.0})
    took = {"event": "took", "id": "c", "cost": 1, "attempt": 0}
    write_events(pool, WORKER, took | {"t": 1000}, took | {"event": "finished", "t": 1010})
    found = Page("".join(page(pool)))
    assert found.tiles["devices computing"] == "90%" and found.tiles["MFU"] == "25%"
    assert [found.texts["th"].count(name) for name in ("computing", "MFU", "GiB")] == [1, 1, 1]


# ---- a large pool ----


def busy_lanes(workers: int, hours: float = 3.0) -> Iterator[Attempted]:
    """Attempts of ten minutes, one after the other, of workers that share hosts; a few fail."""
    for n in range(workers):
        worker = f"gpu-node{n // 4:03d}-cluster-example-{31000 + n}-a{n:04x}f"
        for turn in range(int(hours * 6)):
            ending = "failed" if (n + turn) % 50 == 7 else "done"
            yield Attempted(f"c{n}-{turn}", worker, "node", ending, 1000.0 + 600 * turn, 600.0)


def test_two_hundred_workers_make_a_page_that_can_be_written_again_and_again() -> None:
    """What looks alike is one bar: 6.6 MB once, for the lanes alone."""
    found = Summary(now=0.0).add(busy_lanes(200))
    assert found.drawn is None
    text = "".join(charts.lanes(found))
    assert len(text) < 300_000
    assert text.count("<rect") < 20 * 200
    assert text.count('class="failed"') == found.endings["failed"], "and none that failed is lost"
    assert "100% busy" in text and "90% busy" not in text, "nor is the last piece lower for its age"


def test_the_lanes_of_a_host_can_be_told_apart() -> None:
    found = Summary(now=0.0).add(busy_lanes(8))
    names = [charts.short(worker) for worker in found.lanes]
    assert len(set(names)) == 8 and max(map(len, names)) <= charts.NAME_MAX
    assert names[0] == "gpu-node000-…-31000-a0000f"
    assert charts.short("node7-1-aaaaaa") == "node7-1-aaaaaa"


def test_a_legend_names_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    enlist(pool, WORKER)
    write_events(pool, WORKER, *told_of("a", 100.0, begin="stole"), *told_of("b", 103.0))
    assert "done, stolen from another spool" in "".join(page(pool))
    monkeypatch.setattr(summary, "DRAWN_MAX", 1)
    text = "".join(page(pool))
    assert "busy, the higher the more" in text
    assert "stolen from another" not in text and "ended badly" not in text


def test_numbers_that_are_too_long_for_a_tile_are_set_smaller(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    found = [a for tag, a in Page("".join(page(pool))).elements if tag == "dd"]
    assert {a.get("class") for a in found} == {None}
    many = snapshot([spool_row("gpu0", done=40_320_000)])
    found = [a for tag, a in Page("".join(page(pool, snapshot=many))).elements if tag == "dd"]
    assert {a.get("class") for a in found} == {None, "long"}


@pytest.mark.slow
def test_every_writes_whole_pages_until_all_is_done(tmp_path: Path, start: Start) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    target = tmp_path / "report.html"
    running = start("report", pool.root, "-o", target, "--every", "1s")
    wait_for(target.exists, "the first page")
    assert Page(target.read_text()).tiles["waiting"] == "1"
    finish(pool, WORKER)
    assert running.reap() == 0, running.log
    last = Page(target.read_text())
    assert last.tiles["done"] == "1 of 1"
    assert not [a for tag, a in last.elements if a.get("http-equiv") == "refresh"]


def test_every_needs_a_file_and_a_second(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.30")
    assert fsqueue("report", pool.root, "--every", "30s").returncode == 2
    short = fsqueue("report", pool.root, "-o", str(tmp_path / "x"), "--every", "0.1")
    assert short.returncode == 2 and not (tmp_path / "x").exists()

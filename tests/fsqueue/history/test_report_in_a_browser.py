"""The report as a real browser lays it out, on a telephone and on a desk.

The page allows no scripts, so another page holds it in a frame and measures it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue.history.report import page
from fsqueue.pool.settings import PoolDirectory
from tests.support.monitor_data import enlist, fail, put_status, snapshot, spool_row, write_events
from tests.support.pools import make_pool

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
]

WORKERS = 200
LONG = (
    "/scratch/a/path/without/any/space/that/goes/on/and/on/and/on/and/on/and/on/until/it/is.fasta"
)
MEASURE = """<!doctype html><meta charset="utf-8"><body><iframe src="report.html" width="%d"
height="900" style="border: 0"></iframe><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const runs_out = element => element.scrollWidth > element.clientWidth;
  const found = {
    sideways: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    tiles: page.querySelectorAll("dd").length,
    cut: [...page.querySelectorAll("dt, dd, h1, h2, p, summary")].filter(runs_out)
      .map(element => element.textContent),
    outside: [...page.querySelectorAll("svg text")].filter(text => {
      const [box, whole] = [text, text.closest("svg")].map(e => e.getBoundingClientRect());
      return box.left < whole.left - 1 || box.right > whole.right + 1;
    }).map(text => text.textContent),
  };
  document.body.textContent = JSON.stringify(found);
};
</script>"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a pool of 200 workers, with claims that failed and a long past."""
    root = tmp_path_factory.mktemp("browser")
    pool = make_pool(
        root / "pool", *(f"a_rather_long_name_of_an_input{n}.{n + 1}" for n in range(4))
    )
    workers = [
        f"gpu-node{n // 4:03d}-cluster-example-{31000 + n}-a{n:04x}f" for n in range(WORKERS)
    ]
    for number, worker in enumerate(workers):
        write_events(pool, worker, *_past(number))
        put_status(pool, worker, tier=1, energy_wh=123_456.0, spool="gpu0")
    enlist(pool, *workers[:3])
    for worker in workers[:2]:
        fail(pool, worker, f"exit status 137: RuntimeError, with the file {LONG}")
    rows = [
        spool_row(f"gpu{n}", model="RTX PRO 6000 Blackwell", done=40_320) for n in range(WORKERS)
    ]
    (root / "report.html").write_text("".join(page(pool, snapshot=_seen(pool, rows), every_s=30.0)))
    return root


def _seen(pool: PoolDirectory, rows: list[Any]) -> Any:
    facts = {"eta_s": 720_000.0, "eta_low_s": 480_000.0, "eta_high_s": 1_170_000.0}
    return snapshot(
        rows, pool=pool.root, counters={"tokens_of_the_model": 123_456_789_012}, **facts
    )


def _past(number: int) -> Iterator[dict[str, Any]]:
    for turn in range(18):
        id, t = f"c{number}-{turn}", 1000.0 + 600 * turn
        yield {"t": t, "event": "took", "id": id, "cost": 1, "spool": "gpu0"}
        yield {"t": t + 590, "event": "finished", "id": id, "cost": 1, "seconds": 590}


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_cut_off_or_runs_out_of_its_place(
    told: Path, tmp_path: Path, width: int
) -> None:
    (told / "measure.html").write_text(MEASURE % width)
    assert BROWSER is not None
    options = "--headless=new --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom"
    words = [BROWSER, *options.split(), f"--user-data-dir={tmp_path}", "--window-size=1500,1000"]
    shown = subprocess.run(
        [*words, f"file://{told}/measure.html"], capture_output=True, text=True, timeout=120
    )
    body = re.search(r"<body>(.*)</body>", shown.stdout, re.DOTALL)
    assert body is not None, shown.stderr
    found = json.loads(html.unescape(body[1]))
    assert found.pop("tiles") >= 12
    assert found == {"sideways": 0, "cut": [], "outside": []}

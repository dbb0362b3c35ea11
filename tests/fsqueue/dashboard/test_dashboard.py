"""A frame says what is known, in the room there is, and nothing in it is obeyed.

The frames in frames/ are what a terminal of that width shows; look at them when one changes, then
write it anew: FRAMES=write pytest tests/fsqueue/test_dashboard.py
"""

from __future__ import annotations

import fcntl
import inspect
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fsqueue.cli.watch import watch as command
from fsqueue.dashboard import LoadBalancingDashboard, View, live, print_once, render, show
from fsqueue.dashboard.board import COLUMNS, board, colour
from fsqueue.gpu.utilization import GPUMonitor
from fsqueue.monitor.alerts import Alert, AlertKind
from fsqueue.monitor.coordinator import WorkStealingCoordinator
from fsqueue.monitor.counts import Amount
from fsqueue.monitor.snapshot import Failure, Reader, Snapshot
from fsqueue.monitor.workers import Use
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.journal import Steal
from tests.support.monitor_data import fail, finish, snapshot, spool_row, worker_row, write_events
from tests.support.pools import make_pool
from tests.support.processes import wait_for

pytestmark = pytest.mark.usefixtures("utc")

WATCH_DEFAULTS = {option.name: option.default for option in command.params}
FRAMES = Path(__file__).parent / "frames"


def frame(
    seen: Snapshot, width: int = 120, height: int = 40, view: View | None = None, **how: bool
) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=False, color_system=None)
    console.print(render(seen, view or View(), width, height, **how))
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


@pytest.fixture
def busy() -> Snapshot:
    """Four unequal GPUs: one far ahead, one stalled, one whose worker is gone, one stale."""
    spools = [
        spool_row(
            "gpu0", model="NVIDIA GeForce RTX 4090", weight=1.5, stolen_in=12, items_per_s=1612
        ),
        spool_row("gpu1", state="stalled", stalled=True, items_per_s=None, eta_s=None, errors=2),
        spool_row("gpu2", workers=0, state="no worker", use=Use(), items_per_s=None, stolen_out=12),
        spool_row("gpu10", workers=2, running=2, use=Use(55.5, 97.0), stale=True),
    ]
    seen = snapshot(spools)
    count = replace(
        seen.count, failed=Amount(1, 1000), planned=seen.count.planned + Amount(1, 1000)
    )
    return replace(
        seen,
        count=count,
        workers=(
            worker_row("node7-1-aaaaaa", state="running"),
            worker_row("node7-2-bbbbbb", state="stalled", stalled=True, health="degraded"),
            worker_row("node8-3-cccccc", progress=None, holds=()),
            worker_row("node8-4-dddddd", health="lost", state="lost", holds=("output_9-77",)),
        ),
        steals=tuple(
            Steal(43_100.0 + n, f"output_{n}-ab", 5000, "gpu2", "gpu0", "w") for n in range(12)
        ),
        failures=(Failure("output_3-9f", 3, "node7-2-bbbbbb", "CUDA error: out of memory"),),
        warnings=(
            Alert(AlertKind.SUSPECT, "w", "node8-3-cccccc: suspect: no beat for 15 s"),
            Alert(AlertKind.STALLED, "w", "GPU gpu1 stalled - no activity for 312s"),
        ),
    )


# ---- what a frame looks like ----


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_frame_looks_as_it_did(busy: Snapshot, width: int) -> None:
    drawn, path = frame(busy, width), FRAMES / f"{width}.txt"
    if os.environ.get("FRAMES") == "write":
        path.write_text(drawn)
    assert drawn == path.read_text()


@pytest.mark.parametrize(
    ("name", "width", "view"),
    [
        ("worker", 120, View(by_worker=True)),
        ("worker-60", 60, View(by_worker=True, rates=True, help=True)),
        ("tokens", 80, View(rates=True, help=True, sort="speed")),
    ],
)
def test_a_frame_of_another_view_looks_as_it_did(
    busy: Snapshot, name: str, width: int, view: View
) -> None:
    drawn, path = frame(busy, width, view=view), FRAMES / f"{name}.txt"
    if os.environ.get("FRAMES") == "write":
        path.write_text(drawn)
    assert drawn == path.read_text()


def test_tokens_are_shown_on_demand_and_then_kept_longer_than_temperatures(busy: Snapshot) -> None:
    assert "tok/s" not in frame(busy, 200)
    assert "80,650" in frame(busy, 80, view=View(rates=True))
    shown = [c.title for c in board(busy, View(rates=True), 80, 9).columns]
    assert "tok/s" in shown and "temp" not in shown


def test_by_worker_the_claims_that_are_held_add_up(busy: Snapshot) -> None:
    table = board(busy, View(by_worker=True), 120, 9)
    holds = table.titles.index("holds")
    assert table.total[holds][0] == f"{busy.count.running.claims}"


def test_the_same_snapshot_gives_the_same_frame(busy: Snapshot) -> None:
    assert frame(busy) == frame(busy)


@pytest.mark.parametrize("width", [8, 20, 40, 60, 80, 100, 120, 200, 400])
@pytest.mark.parametrize("height", [1, 5, 10, 24, 60])
@pytest.mark.parametrize("by_worker", [False, True])
def test_no_frame_is_wider_or_longer_than_the_terminal(
    busy: Snapshot, width: int, height: int, by_worker: bool
) -> None:
    lines = frame(busy, width, height, View(by_worker=by_worker, help=True)).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height - 1, 12)


def test_a_narrow_terminal_keeps_what_matters_most(busy: Snapshot) -> None:
    seen = [
        {c.title for c in board(busy, View(), width, 9).columns} for width in range(200, 20, -1)
    ]
    assert all(narrow <= wide for wide, narrow in zip(seen, seen[1:], strict=False))
    assert {"GPU", "queue", "state"} <= seen[-1]
    order = sorted(COLUMNS, key=lambda column: column.rank)
    assert [c.title for c in order if c.rank == 0] == ["GPU", "worker", "queue", "state"]


def test_many_spools_on_a_low_terminal_keep_those_in_trouble() -> None:
    spools = [spool_row(f"gpu{n}", state="idle", running=0) for n in range(64)]
    spools[50] = spool_row("gpu50", state="stalled", stalled=True)
    spools[60] = spool_row("gpu60", state="running")
    drawn = frame(snapshot(spools), 100, 24)
    assert "gpu50" in drawn and "gpu60" in drawn and "more" in drawn
    assert len(drawn.splitlines()) <= 23


def test_long_names_are_cut_rather_than_numbers(busy: Snapshot) -> None:
    long = replace(busy, spools=(spool_row("s" * 40), *busy.spools[1:]))
    drawn = frame(long, 40)
    assert "~" in drawn and max(map(len, drawn.splitlines())) <= 40
    assert re.search(r"s+~ .* 20 .* running", drawn)


def test_gpus_are_in_natural_order(busy: Snapshot) -> None:
    drawn = frame(busy)
    assert drawn.index("gpu2") < drawn.index("gpu10")


def test_columns_that_nobody_can_fill_are_left_out() -> None:
    drawn = frame(snapshot([spool_row("cpu0", use=Use())]), 200)
    assert "util" not in drawn and "power" not in drawn and "errors" not in drawn


def test_no_memory_hides_the_memory_column(busy: Snapshot) -> None:
    assert " mem " in frame(busy, 120) and " mem " not in frame(busy, 120, view=View(memory=False))


def test_steals_are_shown_newest_first_and_eight_of_them(busy: Snapshot) -> None:
    shown = re.findall(r"output_(\d+)-ab", frame(busy))
    assert shown == [str(n) for n in range(11, 3, -1)]
    assert re.findall(r"output_(\d+)-ab", frame(busy, view=View(events=2))) == ["11", "10"]
    assert "steals" not in frame(busy, view=View(events=0))


def test_steals_are_headed_by_what_they_were_worth(busy: Snapshot) -> None:
    assert "steals: 12, 7.5% of what is done\n" in frame(busy)
    (first, *others) = busy.workers
    met = replace(first, status=replace(first.status, lock_skips=3))
    seen = replace(busy, workers=(met, *others))
    assert "steals: 12, 7.5% of what is done, 3 tries met a lock\n" in frame(seen)
    assert "steals\n" in frame(replace(busy, spools=(spool_row("gpu0", done=0),)))


def test_the_gravest_trouble_comes_first(busy: Snapshot) -> None:
    drawn = frame(busy)
    assert drawn.index("stalled - no activity") < drawn.index("suspect: no beat")


def test_a_terminal_without_unicode_gets_none(busy: Snapshot) -> None:
    assert frame(busy, ascii=True).isascii()


@pytest.mark.parametrize(
    ("percentage", "style"),
    [(80.0, "green"), (79.9, "yellow"), (50.0, "yellow"), (49.9, "red"), (None, "dim")],
)
def test_utilisation_is_coloured_by_its_band(percentage: float | None, style: str) -> None:
    assert colour(percentage) == style


def test_stale_numbers_are_dim_but_the_state_is_not(busy: Snapshot) -> None:
    table = board(busy, View(), 200, 9)
    stale = {c.title: cell for c, cell in zip(table.columns, table.rows[3], strict=True)}
    assert stale["util"] == ("56%", "dim") and stale["state"] == ("running", "green")


@pytest.mark.parametrize(
    ("sort", "first"), [("name", "gpu0"), ("state", "gpu1"), ("speed", "gpu0")]
)
def test_rows_are_sorted_as_wanted(busy: Snapshot, sort: str, first: str) -> None:
    assert board(busy, View(sort=sort), 200, 9).rows[0][0][0] == first


def test_markup_is_shown_not_obeyed() -> None:
    seen = snapshot([spool_row("gpu0", model="[red]x[/red] [link=http://x]y[/link]")])
    assert "[red]x[/red] [link=http://x]" in frame(seen, 200)


def test_a_pool_without_anything_has_a_frame_too() -> None:
    drawn = frame(snapshot())
    assert "0 of 0 done" in drawn


# ---- once ----


def test_once_prints_a_whole_frame_to_a_pipe(
    busy: Snapshot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    many = replace(busy, spools=tuple(spool_row(f"gpu{n}") for n in range(80)))
    print_once(many, View())
    out = capsys.readouterr().out
    assert "gpu79" in out and "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 120


# ---- live, on a terminal ----


class Terminal:
    """A process on a terminal of its own, and all it wrote there."""

    def __init__(self, *argv: str, size: tuple[int, int] = (24, 100)) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.resize(*size)
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm-256color"},
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )
        os.set_blocking(self.master, False)
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def shows(self, pattern: str) -> bool:
        """Say whether this was written since the last `forget`."""
        try:
            while data := os.read(self.master, 1 << 16):
                self.text += data.decode(errors="replace")
        except (BlockingIOError, OSError):
            pass
        return re.search(pattern, self.text) is not None

    def wait_for(self, pattern: str) -> None:
        try:
            wait_for(lambda: self.shows(pattern), repr(pattern))
        except TimeoutError as error:
            error.add_note(f"status {self.process.poll()}; on the terminal: {self.text!r}")
            raise

    def forget(self) -> None:
        self.text = ""

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.40", "b.30")


@pytest.fixture
def watch(pool: PoolDirectory) -> Iterator[Terminal]:
    words = ("watch", pool.root, "--interval", "0.1")
    terminal = Terminal(sys.executable, "-m", "fsqueue", *words)
    yield terminal
    terminal.close()


@pytest.mark.slow
def test_watch_draws_follows_and_ends_by_itself(pool: PoolDirectory, watch: Terminal) -> None:
    watch.wait_for("0 of 2 done")
    finish(pool, "node7-1-aaaaaa")
    watch.wait_for("1 of 2 done")
    assert watch.process.poll() is None
    finish(pool, "node7-1-aaaaaa")
    assert watch.process.wait(timeout=30) == 0
    watch.wait_for("2 of 2 done")
    assert termios.tcgetattr(watch.slave) == watch.before
    assert watch.shows(re.escape("\x1b[?25h")), "the cursor came back"


@pytest.mark.slow
def test_keys_change_the_view_and_q_quits(pool: PoolDirectory, watch: Terminal) -> None:
    watch.wait_for("queue")
    watch.type("w")
    watch.wait_for("holds")
    watch.type("?")
    watch.wait_for("q quit")
    watch.type("q")
    assert watch.process.wait(timeout=30) == 5
    assert termios.tcgetattr(watch.slave) == watch.before


@pytest.mark.slow
def test_each_key_does_what_the_help_says(pool: PoolDirectory) -> None:
    """One look only: what changes on the screen is the key's doing."""
    write_events(
        pool, "w-1-aaaaaa", {"t": 1, "event": "stole", "id": "x", "from": "gpu1", "to": "gpu0"}
    )
    fail(pool, "w-1-aaaaaa", "boom")
    words = ("watch", pool.root, "--interval", "600")
    terminal = Terminal(sys.executable, "-m", "fsqueue", *words, size=(30, 120))

    def redrawn(key: str) -> str:
        terminal.forget()
        terminal.type(key)
        terminal.wait_for("of 2 done")
        terminal.wait_for(r"m memory")
        return terminal.text

    try:
        terminal.wait_for("0 of 2 done.*1 failed")
        terminal.type("?")
        terminal.wait_for(r"sort \(by name\)")
        assert "sort (by queue)" in redrawn("s")
        assert "boom" not in redrawn("f") and "boom" in redrawn("f")
        assert "gpu1 → gpu0" not in redrawn("e") and "gpu1 → gpu0" in redrawn("e")
        terminal.type("\x1b[A")  # an arrow key is none of ours
        assert "holds" in redrawn("w") and "holds" not in redrawn("w")
        terminal.type("q")
        assert terminal.process.wait(timeout=30) == 5
    finally:
        terminal.close()


def test_t_shows_the_rates_of_counters_and_hides_them_again(busy: Snapshot) -> None:
    shown = live.view_after(View(), "t")
    assert "tok/s" in frame(busy, view=shown)
    assert "tok/s" not in frame(busy, view=live.view_after(shown, "t"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_terminal_as_it_was(
    watch: Terminal, number: signal.Signals, status: int
) -> None:
    watch.wait_for("0 of 2 done")
    watch.process.send_signal(number)
    assert watch.process.wait(timeout=30) == status
    assert termios.tcgetattr(watch.slave) == watch.before
    watch.wait_for(re.escape("\x1b[?25h"))


@pytest.mark.slow
def test_a_new_size_is_followed_at_once(pool: PoolDirectory) -> None:
    words = ("watch", pool.root, "--interval", "60")
    terminal = Terminal(sys.executable, "-m", "fsqueue", *words, size=(24, 120))
    try:
        terminal.wait_for("weight")
        terminal.forget()
        terminal.resize(20, 50)
        terminal.wait_for("queue")
        assert not terminal.shows("weight")
    finally:
        terminal.close()


@pytest.mark.slow
def test_watch_in_the_background_does_not_stop_for_the_terminal(pool: PoolDirectory) -> None:
    """Setting the terminal from a background job would stop it (SIGTTOU)."""
    words = (
        f"set -m; {sys.executable} -m fsqueue watch '{pool.root}' --interval 0.1 & wait; echo over"
    )
    terminal = Terminal("bash", "-c", words)
    try:
        terminal.wait_for("0 of 2 done")
        finish(pool, "node7-1-aaaaaa")
        finish(pool, "node7-1-aaaaaa")
        terminal.wait_for("over")
    finally:
        terminal.close()


def test_show_without_a_terminal_writes_lines(
    pool: PoolDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(pool, "node7-1-aaaaaa")
    looks: list[int] = []
    seen = show(pool, until=lambda: len(looks) > 1 or looks.append(1) or False, interval_s=0.01)
    assert seen.count.done.claims == 1
    assert "gpu0: " in capsys.readouterr().out


# ---- in the background (T5, T9) ----


def test_a_dashboard_without_a_coordinator_shows_nothing_and_fails_nowhere() -> None:
    dashboard = LoadBalancingDashboard(None, None, update_interval=0.01)
    assert dashboard._collect_metrics() is None
    dashboard.start()
    dashboard.stop()
    dashboard.stop()


def test_the_dashboard_and_the_coordinator_have_the_agreed_names_and_defaults() -> None:
    given = inspect.signature(LoadBalancingDashboard).parameters
    assert list(given) == ["coordinator", "gpu_monitor", "update_interval", "log_file"]
    assert given["update_interval"].default == 2.0
    assert given["log_file"].default == "gpu_metrics.log"
    for name in "start stop _generate_table _collect_metrics _update_loop _log_metrics".split():
        assert callable(getattr(LoadBalancingDashboard, name))
    stall = inspect.signature(WorkStealingCoordinator.detect_stalled_workers).parameters
    assert stall["stall_threshold"].default == 300
    assert WATCH_DEFAULTS["interval"] == 2.0 and WATCH_DEFAULTS["events"] == 8


def test_the_background_dashboard_logs_and_keeps_the_metrics(
    pool: PoolDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    write_events(
        pool, "node7-1-aaaaaa", {"t": 1, "event": "stole", "id": "x", "from": "gpu1", "to": "gpu0"}
    )
    dashboard = LoadBalancingDashboard(WorkStealingCoordinator(pool), GPUMonitor(), 0.01)
    path = Path(pool.root, "gpu_metrics.log")
    with caplog.at_level("INFO"):
        dashboard.start()
        dashboard.start()
        wait_for(lambda: path.exists() and path.read_text().count("\n") > 2, "metrics")
        dashboard.stop()
    header, line, *_ = path.read_text().splitlines()
    assert header == "timestamp,gpu_id,sequences_per_sec,compute_percent,memory_percent"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ,gpu0,,,", line)
    assert "stole x from gpu1" in caplog.text and "GPU gpu0" not in caplog.text


def test_the_background_dashboard_survives_its_pool(pool: PoolDirectory, tmp_path: Path) -> None:
    dashboard = LoadBalancingDashboard(WorkStealingCoordinator(pool), None, 0.01)
    os.rename(pool.root, tmp_path / "elsewhere")
    dashboard._log_metrics(dashboard._collect_metrics())
    dashboard._generate_table(dashboard._collect_metrics())


def test_the_monitor_fills_only_gaps(pool: PoolDirectory) -> None:
    class Monitor(GPUMonitor):
        def get_gpu_utilization(self, device_id: int | str) -> dict[str, float | None]:
            assert device_id == "GPU-1"
            none = dict.fromkeys(("memory_percent", "temperature", "power_watts"))
            return {"compute_percent": 12.0, **none}

    from fsqueue.dashboard.background import _fill_gaps

    known = spool_row("gpu0", use=Use(91.0))
    assert _fill_gaps(known, Monitor()) is known
    assert _fill_gaps(spool_row("gpu0", use=Use()), Monitor()).use == Use(12.0)
    nameless = spool_row("gpu0", use=Use(), gpu="")
    assert _fill_gaps(nameless, Monitor()) is nameless


def test_a_reader_can_be_shared_with_the_frame(pool: PoolDirectory) -> None:
    assert "0 of 2 done" in frame(Reader(pool).snapshot())


def test_a_cut_path_does_not_look_like_a_home_directory(busy: Snapshot) -> None:
    long = replace(busy, pool="/scratch/someone/projects/2026/pool")
    first = frame(long, 40).splitlines()[0]
    assert first.startswith("...") and "/pool" in first and "~" not in first

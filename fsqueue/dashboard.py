"""Draw a pool in a terminal: the only door to rich.

`render` is a pure function of a snapshot, a view and a size; `show` looks and draws until told to
stop. Text from the pool is shown, never obeyed: it arrives printable (`status.printable`), and
nothing here reads it as markup.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fsqueue import figures
from fsqueue.board import GAP, GRAVE, SORTS, Board, View, board
from fsqueue.keys import Keys
from fsqueue.loglines import counted
from fsqueue.pool import Pool
from fsqueue.snapshot import Reader, Snapshot

FIXED_LINES: Final = 7
"""Heading, blank, titles, total, rows left out, blank, progress."""
ROWS_MIN: Final = 4
WARNINGS_MAX: Final = 6
FAILURES_MAX: Final = 3
POLL_S: Final = 0.1
IDLE_SHARE: Final = 5
"""The pause after a look is at least so many times as long as the look took."""
HELP: Final = (
    "q quit  s sort (name, queue, speed, state)  w by worker  f failed  e steals  m memory  ? help"
)


def render(
    snapshot: Snapshot, view: View, width: int, height: int, *, ascii: bool = False
) -> RenderableType:
    """Return what is drawn of a snapshot in a terminal of this size."""
    rows = len(snapshot.workers if view.by_worker else snapshot.spools)
    room = max(height - 1 - FIXED_LINES - view.help, ROWS_MIN)
    room -= min(rows, ROWS_MIN)
    warnings = _warnings(snapshot)[: max(0, room)]
    failures = _failures(snapshot)[: max(0, room - len(warnings))] if view.failed else []
    room -= len(warnings) + len(failures)
    more = max(0, min(rows - ROWS_MIN, room))
    steals = _steals(snapshot, view.events, ascii)[: max(0, room - more)]
    table = board(snapshot, view, width, min(rows, ROWS_MIN) + more)
    lines: list[RenderableType] = [_heading(snapshot, width), Text(), _table(table)]
    if table.left_out:
        lines.append(_line(f"... and {table.left_out:,} more", "dim"))
    lines += [Text(), _bar(snapshot, width, ascii), *warnings, *failures, *steals]
    if view.help:
        lines.append(_line(HELP, "dim"))
    return Group(*lines)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _heading(snapshot: Snapshot, width: int) -> Text:
    living = sum(row.living for row in snapshot.workers)
    right = f"{living} worker{'s' * (living != 1)}  {figures.clock(snapshot.taken_at)}"
    room = max(8, width - len(right) - GAP)
    path = snapshot.pool if len(snapshot.pool) <= room else "~" + snapshot.pool[1 - room :]
    return _line("").append(path.ljust(room + GAP), "bold").append(right, "dim")


def _table(table: Board) -> Table:
    drawn = Table(
        box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True, header_style="dim"
    )
    for column, title in zip(table.columns, table.titles, strict=True):
        drawn.add_column(title, justify="right" if column.right else "left", no_wrap=True)
    for row in (*table.rows, table.total):
        drawn.add_row(*(Text(text, style=style) for text, style in row))
    return drawn


def _bar(snapshot: Snapshot, width: int, ascii: bool) -> Text:
    """Return overall progress by cost, and every claim accounted for."""
    count = snapshot.count
    text = f"  {figures.share(snapshot.progress, 1.0)}  {counted(snapshot, eta=False)}"
    line = _line("")
    room = min(40, width - len(text))
    if room >= 8:
        full, empty = ("#", "-") if ascii else ("━", "─")
        filled = int(room * snapshot.progress)
        line.append(full * filled, "red" if count.failed.claims else "green")
        line.append(empty * (room - filled), "dim")
    return line.append(text if room >= 8 else text[2:])


def _warnings(snapshot: Snapshot) -> list[Text]:
    notices = sorted(snapshot.warnings, key=lambda notice: notice.kind not in GRAVE)
    lines = [
        _line(f"! {notice.text}", "bold red" if notice.kind in GRAVE else "yellow")
        for notice in notices[:WARNINGS_MAX]
    ]
    if len(notices) > WARNINGS_MAX:
        more = len(notices) - WARNINGS_MAX
        lines.append(_line(f"! ... and {more} more: fsqueue workers POOL", "yellow"))
    return lines


def _failures(snapshot: Snapshot) -> list[Text]:
    failed = snapshot.count.failed.claims
    shown = [
        _line(f"x {failure.id}: {failure.error}", "red")
        for failure in reversed(snapshot.failures[-FAILURES_MAX:])
    ]
    if failed > len(shown):
        shown.append(_line(f"x ... and {failed - len(shown):,} more: fsqueue failed POOL", "red"))
    return shown


def _steals(snapshot: Snapshot, events: int, ascii: bool) -> list[Text]:
    if not events or not snapshot.steals:
        return []
    arrow = "->" if ascii else "→"
    lines = [_line("steals", "dim")]
    for steal in list(reversed(snapshot.steals))[:events]:
        where = f"{steal.source} {arrow} {steal.to or steal.worker}"
        lines.append(
            _line(f"{figures.clock(steal.t)}  {where}  {steal.id}  cost {steal.cost:,.0f}")
        )
    return lines


# ---- live ----


def show(
    pool: Pool,
    *,
    until: Callable[[], bool] | None = None,
    interval_s: float = 2.0,
    view: View | None = None,
    reader: Reader | None = None,
    keys: bool = False,
) -> Snapshot:
    """Draw live until `until()` is true (None: until all is done, or q is typed).

    The last frame stays on the terminal; it shows the pool after `until()` was true.
    """
    reader, view = reader or Reader(pool), view or View()
    console = Console(highlight=False)
    with (
        Keys() if keys else nullcontext() as typed,
        Live(console=console, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            over = until is not None and until()
            snapshot = reader.snapshot()
            _draw(live, snapshot, view)
            if over or (until is None and snapshot.finished):
                return snapshot
            pause_s = max(interval_s, IDLE_SHARE * snapshot.took_s)
            view, quits = _pause(live, snapshot, view, pause_s, typed, until)
            if quits:
                return snapshot


def _draw(live: Live, snapshot: Snapshot, view: View) -> None:
    width, height = live.console.size
    ascii = live.console.options.ascii_only
    live.update(render(snapshot, view, width, height, ascii=ascii), refresh=True)


def _pause(
    live: Live,
    snapshot: Snapshot,
    view: View,
    seconds: float,
    typed: Keys | None,
    until: Callable[[], bool] | None,
) -> tuple[View, bool]:
    """Wait for the next look, obeying keys and a new size; return the view, and whether to quit."""
    deadline = time.monotonic() + seconds
    size = live.console.size
    while (left := deadline - time.monotonic()) > 0:
        if typed is None:
            time.sleep(min(left, POLL_S))
            key = ""
        else:
            key = typed.wait(min(left, POLL_S))
        if key in ("q", "Q", "\x04"):
            return view, True
        changed = _obey(view, key)
        if live.console.size != size:
            # What the terminal had wrapped or cut can no longer be counted in lines.
            live.console.clear()
            size = live.console.size
            _draw(live, snapshot, view)
        if changed != view:
            view = changed
            _draw(live, snapshot, view)
        if until is not None and until():
            break
    return view, False


def _obey(view: View, key: str) -> View:
    """Return the view after a key."""
    if key == "s":
        return replace(view, sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)])
    if key == "w":
        return replace(view, by_worker=not view.by_worker)
    if key == "f":
        return replace(view, failed=not view.failed)
    if key == "e":
        return replace(view, events=0 if view.events else 8)
    if key == "m":
        return replace(view, memory=not view.memory)
    return replace(view, help=not view.help) if key == "?" else view


def print_once(snapshot: Snapshot, view: View) -> None:
    """Print one frame, whole: to a terminal in its width, elsewhere in COLUMNS or 120."""
    console = Console(highlight=False)
    width = console.size.width if console.is_terminal or "COLUMNS" in os.environ else 120
    frame = render(snapshot, view, width, 10_000, ascii=console.options.ascii_only)
    console.print(frame, width=width, crop=False, soft_wrap=False)

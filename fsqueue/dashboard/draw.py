"""One frame: heading, table, progress, alerts, failures, steals, in the room there is."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fsqueue.dashboard.board import GAP, Board, View, board
from fsqueue.monitor import format
from fsqueue.monitor.log_lines import counted
from fsqueue.monitor.snapshot import Snapshot

FIXED_LINES: Final = 7
"""Heading, blank, titles, total, rows left out, blank, progress."""
ROWS_MIN: Final = 4
WARNINGS_MAX: Final = 6
FAILURES_MAX: Final = 3
HELP: Final = "f failed", "e steals", "t rates", "m memory", "? help"


def render(
    snapshot: Snapshot, view: View, width: int, height: int, *, ascii: bool = False
) -> RenderableType:
    """Return what is drawn of a snapshot in a terminal of this size."""
    rows = len(snapshot.workers if view.by_worker else snapshot.spools)
    help = _help(view, width)[: max(1, height - 1 - FIXED_LINES - ROWS_MIN)]
    room = max(height - 1 - FIXED_LINES - len(help), ROWS_MIN)
    room -= min(rows, ROWS_MIN)
    warnings = _warnings(snapshot)[: max(0, room)]
    failures = _failures(snapshot)[: max(0, room - len(warnings))] if view.failed else []
    room -= len(warnings) + len(failures)
    more = max(0, min(rows - ROWS_MIN, room))
    steals = _steals(snapshot, view, ascii)[: max(0, room - more)]
    table = board(snapshot, view, width, min(rows, ROWS_MIN) + more)
    lines: list[RenderableType] = [_heading(snapshot, width), Text(), _table(table)]
    if table.left_out:
        lines.append(line(f"... and {table.left_out:,} more", "dim"))
    lines += [Text(), _bar(snapshot, width, ascii), *warnings, *failures, *steals]
    return Group(*lines, *help)


CUT: Final = "..."
"""Stands for the beginning of a path that was cut."""


def line(text: str, style: str = "") -> Text:
    """Return a line that is cut short rather than wrapped."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _help(view: View, width: int) -> list[Text]:
    """Return the keys, as many to a line as fit, and how the rows are sorted now."""
    if not view.help:
        return []
    rows = "w by spool" if view.by_worker else "w by worker"
    lines: list[str] = []
    for key in ("q quit", f"s sort (by {view.sort})", rows, *HELP):
        if lines and len(lines[-1]) + GAP + len(key) <= width:
            lines[-1] += GAP * " " + key
        else:
            lines.append(key)
    return [line(text, "dim") for text in lines]


def _heading(snapshot: Snapshot, width: int) -> Text:
    living = sum(row.living for row in snapshot.workers)
    right = f"{living} worker{'s' * (living != 1)}  {format.clock(snapshot.taken_at)}"
    room = max(8, width - len(right) - GAP)
    # Not "~", which would read as the home directory, and not "…", which not every locale has.
    path = snapshot.pool if len(snapshot.pool) <= room else CUT + snapshot.pool[len(CUT) - room :]
    return line("").append(path.ljust(room + GAP), "bold").append(right, "dim")


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
    text = f"  {format.share(snapshot.progress, 1.0)}  {counted(snapshot, eta=False)}"
    if snapshot.forecast.is_wide:
        low, high = map(format.duration, (snapshot.eta_low_s, snapshot.eta_high_s))
        text += f", {low} to {high} left"
    drawn = line("")
    room = min(40, width - len(text))
    if room >= 8:
        full, empty = ("#", "-") if ascii else ("━", "─")
        filled = int(room * snapshot.progress)
        drawn.append(full * filled, "red" if count.failed.claims else "green")
        drawn.append(empty * (room - filled), "dim")
    return drawn.append(text if room >= 8 else text[2:])


def _warnings(snapshot: Snapshot) -> list[Text]:
    alerts = sorted(snapshot.warnings, key=lambda alert: not alert.kind.grave)
    lines = [
        line(f"! {alert.text}", "bold red" if alert.kind.grave else "yellow")
        for alert in alerts[:WARNINGS_MAX]
    ]
    if len(alerts) > WARNINGS_MAX:
        more = len(alerts) - WARNINGS_MAX
        lines.append(line(f"! ... and {more} more: fsqueue workers POOL", "yellow"))
    return lines


def _failures(snapshot: Snapshot) -> list[Text]:
    failed = snapshot.count.failed.claims
    shown = [
        line(f"x {failure.id}: {failure.error}", "red")
        for failure in reversed(snapshot.failures[-FAILURES_MAX:])
    ]
    if failed > len(shown):
        shown.append(line(f"x ... and {failed - len(shown):,} more: fsqueue failed POOL", "red"))
    return shown


def _steals(snapshot: Snapshot, view: View, ascii: bool) -> list[Text]:
    if not view.steals or not view.events or not snapshot.steals:
        return []
    arrow = "->" if ascii else "→"
    lines = [line(_effect(snapshot), "dim")]
    for steal in list(reversed(snapshot.steals))[: view.events]:
        where = f"{steal.source} {arrow} {steal.to or steal.worker}"
        lines.append(line(f"{format.clock(steal.t)}  {where}  {steal.id}  cost {steal.cost:,.0f}"))
    return lines


def _effect(snapshot: Snapshot) -> str:
    """Return what stealing has done so far, as the workers report it."""
    stolen = max(
        sum(row.stolen_in for row in snapshot.spools),
        sum(row.stolen_out for row in snapshot.spools),
    )
    done, skips = snapshot.count.done.claims, sum(w.status.lock_skips for w in snapshot.workers)
    parts = [f"{stolen:,}, {format.share(stolen, done)} of what is done"] * bool(stolen and done)
    parts += [f"{skips:,} tries met a lock"] * (skips > 0)
    return ": ".join(["steals", *[", ".join(parts)] * bool(parts)])

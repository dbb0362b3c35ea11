"""What the dashboard shows: which columns and rows, in which words and colours.

Everything here is a pure function of a frozen snapshot and a size, and knows nothing of terminals:
a cell is a text and a style. `draw` makes a frame of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from fsqueue.gpu.weights import short_name
from fsqueue.monitor import format
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.monitor.time_use import TimeUse
from fsqueue.monitor.workers import RowState, Use, WorkerRow
from fsqueue.pool.names import natural
from fsqueue.records.status import Health, WorkerState

Cell: TypeAlias = tuple[str, str]
"""A text and the style it is shown in."""
Row: TypeAlias = SpoolRow | WorkerRow

GREEN_MIN: Final = 80.0
YELLOW_MIN: Final = 50.0
GAP: Final = 2
STYLES: Final[Mapping[str, str]] = {
    WorkerState.RUNNING: "green",
    WorkerState.LOADING: "cyan",
    WorkerState.STARTING: "cyan",
    RowState.NO_WORKER: "yellow",
    WorkerState.DRAINING: "yellow",
    RowState.SUSPECT: "yellow",
    RowState.STALLED: "bold red",
    Health.LOST: "bold red",
    WorkerState.FAILED: "bold red",
}
GRAVE: Final = frozenset({RowState.STALLED, Health.LOST, WorkerState.FAILED})
NOT_KNOWN: Final = ("n/a", "dim")
SORTS: Final = ("name", "queue", "speed", "state")


@dataclass(frozen=True, slots=True)
class View:
    """What the viewer has chosen to see."""

    events: int = 8
    """How many recent steals."""
    memory: bool = True
    rates: bool = False
    """Whether to show the rates of the handlers' own counters, tokens say."""
    by_worker: bool = False
    failed: bool = True
    steals: bool = True
    sort: str = "name"
    help: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column. Rank 0 always stays, the highest goes first; an optional one if it is empty."""

    title: str
    rank: int
    right: bool = True
    optional: bool = False


TIME_COLUMNS: Final = (
    Column("comp", 13, optional=True),
    Column("feed", 14, optional=True),
    Column("MFU", 13, optional=True),
    Column("peak", 15, optional=True),
)
"""What became of the time in which handlers computed; shown with the rates of their counters."""
COLUMNS: Final = (
    Column("GPU", 0, right=False),
    Column("worker", 0, right=False, optional=True),
    Column("model", 5, right=False),
    Column("weight", 9),
    Column("util", 3, optional=True),
    Column("mem", 6, optional=True),
    Column("temp", 11, optional=True),
    Column("power", 12, optional=True),
    Column("speed", 1),
    *TIME_COLUMNS,
    Column("queue", 0),
    Column("left", 7, optional=True),
    Column("now", 10, optional=True),
    Column("done", 2),
    Column("errors", 8, optional=True),
    Column("stolen", 4),
    Column("state", 0, right=False),
    Column("ETA", 2),
)


@dataclass(frozen=True, slots=True)
class Board:
    """A table that fits. `left_out` rows had no room."""

    columns: tuple[Column, ...]
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: tuple[Cell, ...]
    left_out: int


def colour(percentage: float | None) -> str:
    """Return the style for a utilisation: green from 80 %, yellow from 50 %, red below."""
    if percentage is None:
        return "dim"
    if percentage >= GREEN_MIN:
        return "green"
    return "yellow" if percentage >= YELLOW_MIN else "red"


def board(snapshot: Snapshot, view: View, width: int, height: int) -> Board:
    """Return the table of a snapshot in at most `width` cells and `height` rows."""
    rows: list[Row] = list(snapshot.spools)
    if view.by_worker:
        rows = [row for row in snapshot.workers if row.living or row.holds]
    shown = _choose(rows, view, max(1, height))
    cells = [_cells(row, snapshot) for row in shown]
    total = _total_cells(snapshot, view)
    columns = _columns(snapshot, view)
    titles = {c.title: c.title for c in columns} | {"speed": f"{snapshot.unit}/s"}
    if view.by_worker:
        titles["queue"] = "holds"
    kept = _fit(columns, titles, [*cells, total], width)
    _shorten(kept, titles, [*cells, total], width)
    return Board(
        columns=tuple(kept),
        titles=tuple(titles[c.title] for c in kept),
        rows=tuple(tuple(row.get(c.title, ("", "")) for c in kept) for row in cells),
        total=tuple(total.get(c.title, ("", "")) for c in kept),
        left_out=len(rows) - len(shown),
    )


def _columns(snapshot: Snapshot, view: View) -> list[Column]:
    """Return the columns wanted, the rates of the handlers' counters after the speed."""
    columns = [column for column in COLUMNS if view.memory or column.title != "mem"]
    if not view.rates:
        return [column for column in columns if column not in TIME_COLUMNS]
    else:
        at = [column.title for column in columns].index("speed") + 1
        columns[at:at] = [Column(_rate_title(name), 1) for name in sorted(snapshot.rates)]
    return columns


def _rate_title(counter: str) -> str:
    return f"{format.abbreviated(counter)}/s"


def _fit(
    columns: list[Column], titles: dict[str, str], rows: list[dict[str, Cell]], width: int
) -> list[Column]:
    """Return the columns to show: without the empty ones, then by rank until they fit."""

    def texts(column: Column) -> list[str]:
        return [row[column.title][0] for row in rows if column.title in row]

    kept = [c for c in columns if not c.optional or any(t not in ("", "n/a") for t in texts(c))]
    widths = {c: max(map(len, [titles[c.title], *texts(c)])) + GAP for c in kept}
    while sum(widths[c] for c in kept) - GAP > width:
        worst = max(kept, key=lambda column: column.rank)
        if worst.rank == 0:
            break
        kept.remove(worst)
    return kept


def _shorten(
    kept: list[Column], titles: dict[str, str], rows: list[dict[str, Cell]], width: int
) -> None:
    """Cut the longest names where not even the columns of rank 0 fit."""
    widths = [
        max(len(titles[c.title]), *(len(row.get(c.title, ("", ""))[0]) for row in rows))
        for c in kept
    ]
    excess = sum(widths) + GAP * (len(kept) - 1) - width
    if excess <= 0:
        return
    index = max((i for i, c in enumerate(kept) if not c.right), key=lambda i: widths[i])
    room, title = max(4, widths[index] - excess), kept[index].title
    for row in rows:
        text, style = row.get(title, ("", ""))
        if len(text) > room:
            row[title] = text[: room - 1] + "~", style


def _choose(rows: list[Row], view: View, height: int) -> list[Row]:
    """Sort as wanted; where not all fit, keep those in trouble, then those that have work."""
    ordered = sorted(rows, key=_name)
    if view.sort == "queue":
        ordered.sort(key=lambda row: -_left(row))
    elif view.sort == "speed":
        ordered.sort(key=lambda row: -(row.items_per_s or 0.0))
    elif view.sort == "state":
        ordered.sort(key=lambda row: -_urgency(row))
    if len(ordered) <= height:
        return ordered
    chosen = sorted(range(len(ordered)), key=lambda index: -_urgency(ordered[index]))[:height]
    return [ordered[index] for index in sorted(chosen)]


def _name(row: Row) -> tuple[bool, list[tuple[int, int, str]]]:
    if isinstance(row, WorkerRow):
        return not row.status.spool, natural(f"{row.status.spool or ''} {row.id}")
    return not row.name, natural(row.name)


def _left(row: Row) -> float:
    return row.cost_left if isinstance(row, WorkerRow) else row.waiting.cost


def _urgency(row: Row) -> int:
    if row.state in GRAVE:
        return 4
    if row.state in (RowState.SUSPECT, RowState.NO_WORKER):
        return 3
    if row.state not in (WorkerState.IDLE, Health.LEFT, RowState.UNKNOWN):
        return 2
    return 1 if _left(row) else 0


# ---- cells ----


def _cells(row: Row, snapshot: Snapshot) -> dict[str, Cell]:
    cells = _worker_cells(row) if isinstance(row, WorkerRow) else _spool_cells(row, snapshot)
    cells |= _use_cells(row.use) | _time_cells(row.time_use)
    cells["speed"] = format.rate(row.items_per_s), ""
    for name in snapshot.rates:
        cells[_rate_title(name)] = format.rate(row.rates.get(name)), ""
    cells["state"] = row.state, STYLES.get(row.state, "dim")
    if row.stale:
        return {title: (text, "dim") for title, (text, _) in cells.items()} | {
            "state": cells["state"]
        }
    return cells


def _spool_cells(row: SpoolRow, snapshot: Snapshot) -> dict[str, Cell]:
    workers = f" ({row.workers})" if row.workers > 1 else ""
    return {
        "GPU": ((row.name or "others") + workers, "bold"),
        "model": (short_name(row.model), ""),
        "weight": (f"{row.weight:.2f}" if row.weight else "", ""),
        "queue": (f"{row.waiting.claims:,}" if row.name else "", ""),
        "left": (f"{100 * row.share_left:.0f}%" if row.name else "", ""),
        "done": (f"{row.done:,}", ""),
        "errors": (f"{row.errors:,}" if row.errors else "", "red"),
        "stolen": (format.stolen(row.stolen_in, row.stolen_out), ""),
        "ETA": (format.duration(row.eta_s), ""),
    }


def _worker_cells(row: WorkerRow) -> dict[str, Cell]:
    status = row.status
    stolen = sum(int(count) for count in status.stolen_from.values())
    eta_s = row.cost_left / row.cost_per_s if row.cost_per_s and row.holds else None
    return {
        "GPU": (status.spool or "-", "bold"),
        "worker": (row.id, ""),
        "model": (short_name(status.model), ""),
        "weight": (f"{status.weight:.2f}" if status.weight else "", ""),
        "queue": (f"{len(row.holds):,}", ""),
        "now": ("" if row.progress is None else f"{100 * row.progress:.0f}%", ""),
        "done": (f"{status.claims_done:,}", ""),
        "errors": (f"{status.claims_failed:,}" if status.claims_failed else "", "red"),
        "stolen": (format.stolen(max(status.steals_in, stolen), 0), ""),
        "ETA": (format.duration(eta_s), ""),
    }


def _use_cells(use: Use) -> dict[str, Cell]:
    def cell(value: float | None, unit: str, style: str = "") -> Cell:
        return NOT_KNOWN if value is None else (f"{value:.0f}{unit}", style)

    return {
        "util": cell(use.compute_percent, "%", colour(use.compute_percent)),
        "mem": cell(use.memory_percent, "%"),
        "temp": cell(use.temperature, "C"),
        "power": cell(use.power_watts, "W"),
    }


def _time_cells(use: TimeUse) -> dict[str, Cell]:
    percents = use.computing_percent, use.feeding_percent, use.mfu_percent
    cells = dict(zip(("comp", "feed", "MFU"), map(_percent_cell, percents), strict=True))
    return cells | {"peak": ("" if use.peak_gib is None else f"{use.peak_gib:.1f}G", "")}


def _percent_cell(percent: float | None) -> Cell:
    return "" if percent is None else f"{percent:.0f}%", ""


def _total_cells(snapshot: Snapshot, view: View) -> dict[str, Cell]:
    count = snapshot.count
    queue = count.running if view.by_worker else count.waiting
    living = sum(row.living for row in snapshot.workers)
    came = sum(row.stolen_in for row in snapshot.spools)
    errors = sum(row.errors for row in snapshot.spools)
    went = sum(row.stolen_out for row in snapshot.spools)
    return {
        "GPU": ("all", "bold"),
        "speed": (format.rate(snapshot.items_per_s), "bold"),
        **{k: (text, "bold") for k, (text, _) in _time_cells(snapshot.time_use).items()},
        **{_rate_title(name): (format.rate(r), "bold") for name, r in snapshot.rates.items()},
        "queue": (f"{queue.claims:,}", "bold"),
        "done": (f"{count.done.claims:,}", "bold"),
        "errors": (f"{errors:,}" if errors else "", "bold red"),
        "stolen": (f"{max(came, went):,}" if came or went else "", "bold"),
        "state": (f"{living} at work" if living else "", "bold"),
        "ETA": (format.duration(snapshot.eta_s), "bold"),
    }

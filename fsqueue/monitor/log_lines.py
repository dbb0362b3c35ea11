"""What a pool does, as lines for a log: without a terminal, in a SLURM job, through a pipe.

Every event at once, every alert once when it begins and once when it ends, and a line per spool
every ten seconds; of many spools, one line in all. Or, for a log that is read when all is over, no
more than a line at each tenth of the work and every five minutes. Each line stands alone: time,
subject, facts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import groupby
from typing import Final

from fsqueue.gpu.weights import short_name
from fsqueue.monitor import format
from fsqueue.monitor.alerts import Alert, AlertKind
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.journal import Event

EVERY_S: Final = 10.0
PROGRESS_S: Final = 300.0
"""How long there may be no progress line; ..."""
PARTS: Final = 10
"""... and into how many parts the work is divided, at the end of each of which there is one."""
PATIENCE_S: Final = 10.0
"""How long no worker may be alive before that is reported: they may be starting."""
RECOVERABLE: Final = frozenset({AlertKind.STALLED, AlertKind.SUSPECT})
SPOOLS_MAX: Final = 16
"""With more spools than this, only the line for all of them is printed."""
_ATTEMPT: Final = re.compile(r"(, attempt )(\d+)(: )")
POLL_S: Final = 0.2
IDLE_SHARE: Final = 5
PAUSE_MIN_S: Final = 0.05


def follow(
    pool: PoolDirectory,
    *,
    until: Callable[[], bool] | None = None,
    interval_s: float = 2.0,
    echo: Callable[[str], object] = print,
    reader: Reader | None = None,
    lines: Lines | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Snapshot:
    """Print lines until `until()` is true (None: until all is done), then the totals.

    `lines` are those of a log; None: events, alerts and the state of the spools. `sleep` may return
    early if `until()` may have become true.
    """
    reader = reader or Reader(pool)
    lines = Lines() if lines is None else lines
    while True:
        over = until is not None and until()
        snapshot = reader.snapshot()
        for line in lines.news(snapshot, time.monotonic()):
            echo(line)
        if over or (until is None and snapshot.finished):
            echo(f"{format.clock(snapshot.taken_at)} all: {counted(snapshot)}")
            return snapshot
        deadline = time.monotonic() + pause_s(interval_s, snapshot)
        while (left := deadline - time.monotonic()) > 0 and not (until is not None and until()):
            sleep(min(left, POLL_S))


def pause_s(interval_s: float, snapshot: Snapshot) -> float:
    """Return how long to pause before the next look: looking takes under a sixth of the time."""
    return max(interval_s, IDLE_SHARE * snapshot.took_s, PAUSE_MIN_S)


class States(Enum):
    """How the state of a pool is printed while it is worked."""

    SPOOLS = "a line per spool every ten seconds"
    PROGRESS = "a line now and then"
    NOTHING = "nothing"


class ProgressLines:
    """When a line about the progress is due: at each tenth of the work, and every five minutes."""

    def __init__(self) -> None:
        self._part: int | None = None
        self._last = 0.0

    def due(self, snapshot: Snapshot, now: float) -> Iterator[str]:
        """Yield the line if it is due; `now` is a time in seconds. The end has no such line."""
        part = int(PARTS * snapshot.progress)
        if self._part is None:
            self._part, self._last = part, now
        is_due = part > self._part or now - self._last >= PROGRESS_S
        self._part = part
        if is_due and not snapshot.finished:
            self._last = now
            done = f"{int(100 * snapshot.progress)}% of the work done"
            yield f"{format.clock(snapshot.taken_at)} {done}: {counted(snapshot)}"


class Lines:
    """Which lines one log has not had yet."""

    def __init__(self, *, events: bool = True, states: States = States.SPOOLS) -> None:
        self._wants_events = events
        self._states = states
        self._progress = ProgressLines()
        self._seen = 0
        self._shown: dict[tuple[str, str], Alert] = {}
        self._since: dict[tuple[str, str], float] = {}
        self._last = -EVERY_S

    def news(self, snapshot: Snapshot, now: float) -> Iterator[str]:
        """Yield the lines that are due; `now` is a time in seconds."""
        if self._wants_events:
            yield from self._events(snapshot)
        yield from self.alerts(snapshot, now)
        if self._states is States.PROGRESS:
            yield from self._progress.due(snapshot, now)
        if self._states is States.SPOOLS and now - self._last >= EVERY_S:
            self._last = now
            at = format.clock(snapshot.taken_at)
            many = len(snapshot.spools) > SPOOLS_MAX
            for row in () if many else snapshot.spools:
                yield f"{at} {spool_line(row, snapshot.unit)}"
            where = f", in {len(snapshot.spools):,} spools" if many else ""
            yield f"{at} all: {counted(snapshot)}{where}"

    def _events(self, snapshot: Snapshot) -> Iterator[str]:
        fresh = [event for event in snapshot.events if event.serial > self._seen]
        missed = snapshot.events_seen - self._seen - len(fresh)
        if missed > 0 and self._seen:
            yield f"{format.clock(snapshot.taken_at)} ({missed:,} more events, in events/)"
        self._seen = snapshot.events_seen
        for event, text in _joined(fresh):
            yield f"{format.clock(event.t)} {event.worker}: {text}"

    def alerts(self, snapshot: Snapshot, now: float) -> Iterator[str]:
        """Yield a line for each alert that began or ended since the last call."""
        at = format.clock(snapshot.taken_at)
        standing = {(alert.kind, alert.subject): alert for alert in snapshot.warnings}
        self._since = {key: self._since.get(key, now) for key in standing}
        for key, alert in standing.items():
            patient = alert.kind == AlertKind.DESERTED and now - self._since[key] < PATIENCE_S
            if key not in self._shown and not patient:
                self._shown[key] = alert
                yield f"{at} warning: {alert.text}"
        for ended in [key for key in self._shown if key not in standing]:
            alert = self._shown.pop(ended)
            yield f"{at} {'recovered' if alert.kind in RECOVERABLE else 'over'}: {alert.text}"


def _joined(events: Iterable[Event]) -> Iterator[tuple[Event, str]]:
    """Yield events and their texts; attempts that failed alike one after the other are one line."""
    for _, alike in groupby(
        events, lambda event: (event.worker, _ATTEMPT.sub(r"\1\3", event.text))
    ):
        run = list(alike)
        first, last = run[0], run[-1]
        number, final = (_ATTEMPT.search(event.text) for event in (first, last))
        if len(run) > 1 and number and final:
            text = _ATTEMPT.sub(rf", attempts {number[2]} to {final[2]}\3", last.text, count=1)
            yield last, text
        else:
            yield from ((event, event.text) for event in run)


def spool_line(row: SpoolRow, unit: str) -> str:
    """Return one line for a spool."""
    parts = [short_name(row.model)] if row.model else []
    use = row.use
    if use.compute_percent is not None or use.memory_percent is not None:
        parts.append(f"util {format.percent(use.compute_percent)}")
        parts.append(f"mem {format.percent(use.memory_percent)}")
    if row.items_per_s is not None:
        parts.append(f"{format.rate(row.items_per_s)} {unit}/s")
    parts += [
        f"{row.waiting.claims:,} waiting",
        f"{row.done:,} done",
    ]
    if row.stolen_in or row.stolen_out:
        parts.append(f"{format.stolen(row.stolen_in, row.stolen_out)} stolen")
    parts.append(row.state)
    if row.eta_s is not None:
        parts.append(f"ETA {format.duration(row.eta_s)}")
    return f"{row.name or 'others'}: {', '.join(parts)}"


def counted(snapshot: Snapshot, *, eta: bool = True) -> str:
    """Return how many claims are in each state, in words; the numbers add up."""
    count = snapshot.count
    parts = [f"{count.done.claims:,} of {count.planned.claims:,} done"]
    states = {"running": count.running, "waiting": count.waiting, "failed": count.failed}
    states |= count.others
    parts += [f"{amount.claims:,} {word}" for word, amount in states.items() if amount.claims]
    parts += [f"{n:,} {name.replace('_', ' ')}" for name, n in snapshot.counters.items() if n]
    if eta and not snapshot.finished:
        parts.append(f"ETA {format.eta(snapshot.forecast)}")
    return ", ".join(parts)

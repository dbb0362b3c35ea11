"""Write and read the workers' journals: what happened, one JSON object per line.

`Journal` writes one journal. `read_events` reads a whole one and `JournalReader` goes on where it
stopped; both skip what is not an event. `Journals` follows all journals, and knows what happened
lately and how fast each worker is.

Everything read here is a hint (I8). A journal may be missing, cut, hostile or long.

What this module does not know: the units of the work. The counters of a finished claim are whatever
its handler and its plan counted.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from fsqueue.errors import PoolError
from fsqueue.pool.names import WORKER, ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import number, printable

PIECE: Final = 32 << 10
"""How much of a whole journal is read at a time."""
TAIL: Final = 32 << 10
"""How much of a long journal is read at the first look."""
STRIDE: Final = 4 << 20
"""How much at most is read at any later look."""
LINE_MAX: Final = 1 << 20
STEALS_KEPT: Final = 50
EVENTS_KEPT: Final = 200
WINDOW_S: Final = 60.0
WINDOW_CLAIMS: Final = 10
WINDOW_MAX: Final = 2000
OVERHEAD_S: Final = 1.0
MEASURES_MAX: Final = 20
YEAR_9999: Final = 253402300000.0


class EventKind(StrEnum):
    """What an event says happened. The values are the words on disk."""

    JOINED = "joined"
    LEFT = "left"
    TOOK = "took"
    STOLE = "stole"
    FINISHED = "finished"
    FAILED = "failed"
    RELEASED = "released"
    LOST = "lost"
    ADOPTED = "adopted"
    RECOVERED = "recovered"
    ENDED = "ended"
    RETRIED = "retried"
    SUPERSEDED = "superseded"
    FORGOTTEN = "forgotten"
    LOADED = "loaded"
    EVICTED = "evicted"
    WARNING = "warning"


FINISHED_FIELDS: Final = frozenset("t event worker id kind cost attempt seconds".split())
"""The fields of a finished event that are not counters of its handler."""

TEXTS: Final = {
    EventKind.JOINED: "joined {host}, spool {spool}",
    EventKind.LEFT: "left after {counted}: {why}",
    EventKind.STOLE: "stole {id} from {from} (cost {cost})",
    EventKind.FAILED: "{id} failed, attempt {attempt}: {error}",
    EventKind.RELEASED: "put {id} back into {to}",
    EventKind.LOST: "lost {id}: {reason}",
    EventKind.ADOPTED: "found the output of {id} already published",
    EventKind.RECOVERED: "recovered {id} from dead worker {of}",
    EventKind.SUPERSEDED: "superseded {id}, whose input was planned again",
    EventKind.FORGOTTEN: "forgot {id}",
    EventKind.ENDED: "declared {of} dead",
    EventKind.WARNING: "{text}",
}
"""How the events that are shown read."""


# ---- writing one journal ----


def _json(value: object) -> str:
    """Return a value as JSON; for the usual types at a tenth of an encoder's cost."""
    if type(value) is str:
        return encode_basestring_ascii(value)
    if type(value) is int or type(value) is float and math.isfinite(value):
        return repr(value)
    return json.dumps(value, separators=(",", ":"), default=str)


class Journal:
    """This process's events, from any of its threads. The file is made at the first event."""

    def __init__(self, pool: PoolDirectory, writer: str) -> None:
        self._path = pool.events(writer)
        self._writer = writer
        self._file: atomic.Appender | None = None
        self._lock = threading.Lock()
        """No thread may close a descriptor that another is about to write to."""

    def write(self, event: EventKind, /, **facts: Any) -> None:
        """Append one event. A journal that cannot be written never stops the work (I8)."""
        self._append(event, "", facts)

    def claim(self, event: EventKind, name: ClaimName, /, **facts: Any) -> None:
        """Append one event of a claim. Two of these are written for every claim."""
        # The grammar of names admits nothing that JSON would escape.
        claim = f'"id":"{name.id}","kind":"{name.kind}","cost":{name.cost},"attempt":{name.attempt}'
        self._append(event, f",{claim}", facts)

    def _append(self, event: EventKind, claim: str, facts: dict[str, Any]) -> None:
        line = f'{{"t":{time.time():.3f},"event":"{event}","worker":"{self._writer}"{claim}'
        for key, value in facts.items():
            line += f",{encode_basestring_ascii(key)}:{_json(value)}"
        with self._lock:
            try:
                if self._file is None:
                    self._file = atomic.Appender(self._path)
                self._file.line(f"{line}}}".encode())
            except OSError:
                self._close()  # a full disk, say; all it costs is a line on the dashboard

    def close(self) -> None:
        """Close the file, if it was ever opened."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # as above: a late quota error of a file that is only for display
            self._file = None


# ---- reading one journal ----


class JournalReader:
    """One journal, read on from where the last call stopped; a line counts once it is complete."""

    def __init__(self, path: str, *, tail: int | None = None) -> None:
        """`tail`: begin so many bytes before the end, and skip what a long absence makes too much.

        Without it, the whole journal is read, a piece at a time, so that a long one needs no
        memory. The file is open only while a piece is read: there may be thousands of journals.
        """
        self._path = path
        self._tail = tail
        self._offset = -1 if tail is not None else 0

    def events(self, end: int | None = None, *, having: bytes = b"") -> Iterator[dict[str, Any]]:
        """Yield the well-formed events that begin before `end`, of the lines with `having` only.

        A line that is no event is skipped: the tail began inside it, a crash cut it, or NFS filled
        it with NULs.
        """
        for line in self._lines(end, having):
            if having in line and (event := _parse(line)) is not None:
                yield event

    def _lines(self, end: int | None, having: bytes) -> Iterator[bytes]:
        rest, more = b"", True
        while more:
            piece, more = self._read(end)
            self._offset += len(piece)
            whole, newline, rest = (rest + piece).rpartition(b"\n")
            if newline and having in whole:
                yield from whole.split(b"\n")
            if len(rest) > LINE_MAX:
                rest = b""
        self._offset -= len(rest)  # the writer may be in the middle of a line

    def _read(self, end: int | None) -> tuple[bytes, bool]:
        """Return the next bytes, and whether there are more."""
        try:
            fd, facts = atomic.open_for_reading(self._path)
        except (OSError, PoolError):
            return b"", False  # RACE: removed, or out of sight; the next look may find it
        try:
            size = facts.st_size if end is None else min(end, facts.st_size)
            if self._tail is not None:
                if not 0 <= self._offset <= size:  # the first look; or it shrank: it was replaced
                    self._offset = max(0, size - self._tail)
                self._offset = max(self._offset, size - STRIDE)
            left = size - self._offset
            piece = os.pread(fd, min(left, PIECE if self._tail is None else STRIDE), self._offset)
            return piece, 0 < len(piece) < left
        except (OSError, ValueError):
            return b"", False  # RACE: as above; or it shrank
        finally:
            os.close(fd)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line.strip(b"\0 \r"))
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def read_events(path: str) -> Iterator[dict[str, Any]]:
    """Yield the well-formed events of a whole journal."""
    return JournalReader(path).events()


def event_time(event: dict[str, Any]) -> float:
    """Return when an event says it happened, in seconds since 1970, bounded."""
    return max(0.0, min(number(event.get("t")) or 0.0, YEAR_9999))


# ---- following all journals ----


@dataclass(frozen=True, slots=True)
class Event:
    """An event to show. `serial` counts the events of this observer, in the order seen."""

    serial: int
    t: float
    worker: str
    kind: EventKind
    text: str


@dataclass(frozen=True, slots=True)
class Steal:
    """A claim that a worker took from another spool than its own."""

    t: float
    id: str
    cost: float
    source: str
    to: str | None
    """The thief's own spool, if it has one."""
    worker: str


@dataclass(frozen=True, slots=True)
class Speed:
    """What a worker did per second of work over its last claims, and when it finished the last."""

    claims: float
    cost: float
    measures: dict[str, float]
    """By the name of the counter."""
    finished_at: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class _Finished:
    t: float
    seconds: float
    cost: float
    measures: dict[str, float]


class Journals:
    """One observer's view of all journals."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._readers: dict[str, JournalReader] = {}
        self._closed: set[str] = set()
        self._finished: dict[str, deque[_Finished]] = {}
        self._speeds: dict[str, Speed] = {}
        self.steals: deque[Steal] = deque(maxlen=STEALS_KEPT)
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.count = 0

    def look(self, ended: Collection[str] = ()) -> None:
        """Read what was written since the last look; of `ended` workers, for the last time."""
        try:
            listed = atomic.names(self._pool.directory("events"))
        except (OSError, PoolError):
            return  # removed: no events are shown
        workers = {name[:-6] for name in listed if name.endswith(".jsonl")}
        found: list[tuple[float, str, dict[str, Any]]] = []
        for worker in filter(WORKER.fullmatch, workers - self._closed):
            found += [(event_time(event), worker, event) for event in self._new_events(worker)]
            if worker in ended:
                self._closed.add(worker)
                self._readers.pop(worker, None)
        for t, worker, event in sorted(found, key=lambda entry: entry[0]):
            self._take_in(t, worker, event)

    def _new_events(self, worker: str) -> Iterator[dict[str, Any]]:
        if worker not in self._readers:
            self._readers[worker] = JournalReader(self._pool.events(worker), tail=TAIL)
        return self._readers[worker].events()

    def _take_in(self, t: float, worker: str, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == EventKind.FINISHED:
            window = self._finished.setdefault(worker, deque(maxlen=WINDOW_MAX))
            window.append(_finished(t, event))
            self._speeds.pop(worker, None)
            return
        if kind == EventKind.STOLE:
            self.steals.append(_steal(t, worker, event))
        if kind in TEXTS:
            self.count += 1
            self.events.append(Event(self.count, t, worker, EventKind(kind), _text(kind, event)))

    def speed(self, worker: str) -> Speed | None:
        """Return a worker's speed over its last 60 s or its last 10 claims, whichever is more."""
        if worker not in self._speeds and (window := self._finished.get(worker)):
            self._speeds[worker] = _speed(list(window))
        return self._speeds.get(worker)

    def measured(self, worker: str) -> list[tuple[float, float]]:
        """Return cost and seconds of the claims by which a worker's speed is measured."""
        window = self._finished.get(worker)
        return [(done.cost, done.seconds) for done in _chosen(list(window))] if window else []


def _chosen(window: list[_Finished]) -> list[_Finished]:
    """Return the last claims: those of the last 60 s, or the last 10."""
    newest = window[-1].t
    recent = [done for done in window if newest - done.t < WINDOW_S]
    return recent if len(recent) > WINDOW_CLAIMS else window[-WINDOW_CLAIMS:]


def _steal(t: float, worker: str, event: dict[str, Any]) -> Steal:
    to = event.get("to")
    return Steal(
        t,
        printable(event.get("id", "?"), 120),
        number(event.get("cost")) or 0,
        printable(event.get("from"), 40),
        None if to is None else printable(to, 40),
        worker,
    )


def _finished(t: float, event: dict[str, Any]) -> _Finished:
    counters = (name for name, value in event.items() if number(value) is not None)
    named = (name for name in counters if name not in FINISHED_FIELDS and name.isidentifier())
    measures = {name: _amount(event, name) for name in islice(named, MEASURES_MAX)}
    return _Finished(t, _amount(event, "seconds"), _amount(event, "cost"), measures)


def _amount(event: dict[str, Any], name: str) -> float:
    return max(0.0, number(event.get(name)) or 0.0)


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"


def _text(kind: EventKind, event: dict[str, Any]) -> str:
    fields = _Fields({name: str(value) for name, value in event.items()})
    fields["counted"] = "1 claim" if event.get("done") == 1 else f"{fields['done']} claims"
    return printable(TEXTS[kind].format_map(fields).removesuffix(": "))


def _speed(window: list[_Finished]) -> Speed:
    """Return the speed of the work itself.

    Of a pause before a claim at most a second counts: taking and publishing are part of the speed,
    waiting for work is not.
    """
    chosen = _chosen(window)
    seconds, previous = 0.0, chosen[0].t - chosen[0].seconds
    measures: dict[str, float] = {}
    for done in chosen:
        seconds += max(done.seconds, min(done.t - previous, done.seconds + OVERHEAD_S))
        previous = done.t
        for name, count in done.measures.items():
            measures[name] = measures.get(name, 0) + count
    seconds = max(seconds, 1e-6)
    return Speed(
        claims=len(chosen) / seconds,
        cost=sum(done.cost for done in chosen) / seconds,
        measures={name: count / seconds for name, count in measures.items()},
        finished_at=chosen[-1].t,
        longest_s=max(done.seconds for done in chosen),
    )

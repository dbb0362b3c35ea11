"""Follow the workers' journals: what happened lately, and how fast the claims go.

All of it is a hint (I8). A journal may be missing, cut, hostile or long; it is read from near its
end, from where the last look stopped, and what makes no sense in it is left out.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from fsqueue.errors import PoolError
from fsqueue.pool.names import WORKER, ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.untrusted import number, printable
from fsqueue.storage import atomic

TAIL: Final = 32 << 10
"""How much of a long journal is read at the first look."""
STRIDE: Final = 4 << 20
STEALS_KEPT: Final = 50
EVENTS_KEPT: Final = 200
WINDOW_S: Final = 60.0
WINDOW_CLAIMS: Final = 10
WINDOW_MAX: Final = 2000
OVERHEAD_S: Final = 1.0
LINE_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a line. `serial` counts the events of this observer, in the order seen."""

    serial: int
    t: float
    worker: str
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Steal:
    """A claim that a worker took from a spool that is not its own."""

    t: float
    id: str
    cost: float
    source: str
    to: str | None
    """The thief's own spool, if it has one."""
    worker: str


@dataclass(frozen=True, slots=True)
class Speed:
    """What a worker did per second of work over its last claims, and when it last finished one."""

    claims: float
    cost: float
    measures: dict[str, float]
    finished_at: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class _Finished:
    t: float
    seconds: float
    cost: float
    measures: dict[str, float]


class Journals:
    """One observer's sight of all journals."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._offsets: dict[str, int] = {}
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
            return  # removed: nothing is shown of what happened
        workers = {name[:-6] for name in listed if name.endswith(".jsonl")}
        found: list[tuple[float, str, dict[str, Any]]] = []
        for worker in filter(WORKER.fullmatch, workers - self._closed):
            found += [(event_time(facts), worker, facts) for facts in self._news(worker)]
            if worker in ended:
                self._closed.add(worker)
        for t, worker, facts in sorted(found, key=lambda news: news[0]):
            self._take_in(t, worker, facts)

    def _news(self, worker: str) -> Iterator[dict[str, Any]]:
        offset, data = _read_on(self._pool.events(worker), self._offsets.get(worker))
        end = data.rfind(b"\n") + 1  # the writer may be in the middle of a line
        self._offsets[worker] = offset + end
        for line in data[:end].split(b"\n"):
            try:
                facts = json.loads(line.strip(b"\0 \r"))
            except (ValueError, RecursionError):
                continue  # the tail began in a line, or a crash cut one, or NFS put NULs there
            if isinstance(facts, dict) and isinstance(facts.get("event"), str):
                yield facts

    def _take_in(self, t: float, worker: str, facts: dict[str, Any]) -> None:
        kind = facts["event"]
        if kind == "finished":
            window = self._finished.setdefault(worker, deque(maxlen=WINDOW_MAX))
            window.append(_finished(t, facts))
            self._speeds.pop(worker, None)
            return
        if kind == "stole":
            source, to = facts.get("from"), facts.get("to")
            self.steals.append(
                Steal(
                    t,
                    printable(facts.get("id", "?"), 120),
                    number(facts.get("cost")) or 0,
                    printable(source, 40),
                    None if to is None else printable(to, 40),
                    worker,
                )
            )
        if kind in _TELL:
            self.count += 1
            text = printable(_tell(kind, facts))
            self.events.append(Event(self.count, t, worker, kind, text))

    def speed(self, worker: str) -> Speed | None:
        """Return a worker's speed over its last 60 s or its last 10 claims, whichever is more."""
        if worker not in self._speeds and (window := self._finished.get(worker)):
            self._speeds[worker] = _speed(list(window))
        return self._speeds.get(worker)


def _speed(window: list[_Finished]) -> Speed:
    """Return the speed of the work itself, the newest claim last.

    A pause before a claim counts too while it is under a second: taking and publishing are part of
    the speed, waiting for work is not.
    """
    newest = window[-1].t
    recent = [done for done in window if newest - done.t < WINDOW_S]
    chosen = recent if len(recent) > WINDOW_CLAIMS else window[-WINDOW_CLAIMS:]
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
        finished_at=newest,
        longest_s=max(done.seconds for done in chosen),
    )


def event_time(facts: dict[str, Any]) -> float:
    """Return when an event says it happened, in seconds since 1970, bounded."""
    return max(0.0, min(number(facts.get("t")) or 0.0, 253402300000.0))  # the year 9999


def _finished(t: float, facts: dict[str, Any]) -> _Finished:
    def amount(name: str) -> float:
        return max(0.0, number(facts.get(name)) or 0.0)

    named = ("sequences", "residues", "tokens")
    measures = {name: amount(name) for name in named if name in facts}
    return _Finished(t, amount("seconds"), amount("cost"), measures)


_TELL: Final = {
    "joined": "joined {host}, spool {spool}",
    "left": "left after {done} claims: {why}",
    "stole": "stole {id} from {from} (cost {cost})",
    "failed": "{id} failed, attempt {attempt}: {error}",
    "released": "put {id} back into {to}",
    "lost": "lost {id}: {reason}",
    "adopted": "found the output of {id} already there",
    "recovered": "took {id} back from {of}, which is dead",
    "ended": "declared {of} dead",
    "warning": "{text}",
}


class _Facts(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"


def _tell(kind: str, facts: dict[str, Any]) -> str:
    text = _TELL[kind].format_map(_Facts({name: str(value) for name, value in facts.items()}))
    return text.removesuffix(": ")


def _read_on(path: str, offset: int | None) -> tuple[int, bytes]:
    """Return what follows `offset` in a file, and where that begins; (offset, b"") if nothing does.

    None: this is the first look. A file that shrank was replaced, and is read afresh.
    """
    try:
        fd, facts = atomic.open_for_reading(path)
        try:
            if offset is None or offset > facts.st_size:
                offset = max(0, facts.st_size - TAIL)
            offset = max(offset, facts.st_size - STRIDE)
            os.lseek(fd, offset, os.SEEK_SET)
            return offset, b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
        finally:
            os.close(fd)
    except (OSError, PoolError):
        return offset or 0, b""  # RACE: removed, or out of sight; the next look may find it


# ---- writing and reading one journal ----


def _json(value: object) -> str:
    """Return a value as JSON; the usual ones are texts, at a tenth of an encoder's price."""
    if type(value) is str:
        return encode_basestring_ascii(value)
    if type(value) is int or type(value) is float and math.isfinite(value):
        return repr(value)
    return json.dumps(value, separators=(",", ":"), default=str)


class Journal:
    """This process's events, one JSON object a line. Opened at the first event."""

    def __init__(self, pool: PoolDirectory, writer: str) -> None:
        self._path = pool.events(writer)
        self._writer = writer
        self._file: atomic.Appender | None = None

    def write(self, event: str, /, **facts: Any) -> None:
        """Append one event. A journal that cannot be written never stops the work (I8)."""
        self._append(event, "", facts)

    def claim(self, event: str, name: ClaimName, /, **facts: Any) -> None:
        """Append one event of a claim. Two of these are written for every claim."""
        # What the grammar of names admits needs no escaping.
        said = f'"id":"{name.id}","kind":"{name.kind}","cost":{name.cost},"attempt":{name.attempt}'
        self._append(event, f",{said}", facts)

    def _append(self, event: str, said: str, facts: dict[str, Any]) -> None:
        line = f'{{"t":{time.time():.3f},"event":"{event}","worker":"{self._writer}"{said}'
        for key, value in facts.items():
            line += f",{encode_basestring_ascii(key)}:{_json(value)}"
        try:
            if self._file is None:
                self._file = atomic.Appender(self._path)
            self._file.line(f"{line}}}".encode())
        except OSError:
            self.close()  # a full disk, say; what it costs is a line on the dashboard

    def close(self) -> None:
        """Close the file, if it was ever opened."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # as above: late quota errors of a file that is only for eyes
            self._file = None


def read_events(path: str, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the complete, well-formed events after `offset`, with the offset that follows each."""
    for after, line in _lines(path, offset):
        try:
            event = json.loads(line.strip(b"\0"))
        except (ValueError, RecursionError):
            continue  # an append that was cut by a crash, or NULs that NFS put in its place
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield after, event


def _lines(path: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield each complete line after `offset`, with the offset that follows it."""
    try:
        with os.fdopen(atomic.open_for_reading(path)[0], "rb") as file:
            file.seek(offset)
            while (line := file.readline(LINE_MAX)).endswith(b"\n"):  # else it is being written
                offset += len(line)
                yield offset, line
    except (OSError, PoolError):
        return  # RACE: removed or out of sight; the next look may find it

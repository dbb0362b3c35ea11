"""Attempts as a Chrome trace, which Perfetto (ui.perfetto.dev) opens.

One process per host, in it one lane per worker, with a slice per attempt. A stolen claim also
leaves a mark on a lane of the spool that lost it, with an arrow from there to the thief's slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from fsqueue.history.attempts import Attempted

SPOOLS: Final = "spools: claims stolen from them"
Record = dict[str, Any]


def records(attempts: Iterable[Attempted]) -> Iterator[Record]:
    """Yield the records of a trace, each lane named before its first slice. Times are in us."""
    lanes = _Lanes()
    for flow, attempt in enumerate(attempts, 1):
        if attempt.started is None:
            continue  # its start is in no journal: it cannot be drawn
        yield from lanes.name(attempt.host, attempt.worker)
        here = lanes.place(attempt.host, attempt.worker)
        begin = _us(attempt.started)
        yield _slice(attempt, begin) | here
        if attempt.stolen and attempt.spool is not None:
            yield from lanes.name(SPOOLS, attempt.spool)
            there = lanes.place(SPOOLS, attempt.spool)
            mark = {"name": f"{attempt.id} stolen", "cat": "steal", "ts": begin}
            arrow = {"name": "steal", "cat": "steal", "id": flow, "ts": begin}
            yield mark | {"ph": "X", "dur": 1, "args": {"by": attempt.worker}} | there
            yield arrow | {"ph": "s"} | there
            yield arrow | {"ph": "f", "bp": "e"} | here


def _slice(attempt: Attempted, begin: int) -> Record:
    """Return an attempt as a slice: open to the right if it still runs, a mark at its start if its
    end is not known.
    """
    facts = {
        "ending": attempt.ending,
        "attempt": attempt.attempt,
        "kind": attempt.kind,
        "cost": attempt.cost,
        "spool": attempt.spool,
        "error": attempt.error or None,
    }
    args = {name: value for name, value in facts.items() if value is not None}
    quiet = attempt.ending in ("done", "running")
    name = attempt.id if quiet else f"{attempt.ending}: {attempt.id}"
    drawn: Record = {"name": name, "cat": attempt.ending, "ts": begin, "args": args}
    if attempt.ending == "running":
        return drawn | {"ph": "B"}
    return drawn | {"ph": "X", "dur": max(1, _us(attempt.seconds or 0.0))}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


class _Lanes:
    """Numbers of processes and lanes, in order of appearance."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._lanes: dict[tuple[str, str], int] = {}

    def place(self, process: str, lane: str) -> Record:
        """Return the process and lane of a slice."""
        return {"pid": self._processes[process], "tid": self._lanes[process, lane]}

    def name(self, process: str, lane: str) -> Iterator[Record]:
        """Yield the records that name a process or a lane, the first time."""
        if process not in self._processes:
            pid = self._processes[process] = len(self._processes) + 1
            about = {"ph": "M", "pid": pid, "tid": 0}
            yield about | {"name": "process_name", "args": {"name": process}}
            last = 1_000_000 if process == SPOOLS else pid
            yield about | {"name": "process_sort_index", "args": {"sort_index": last}}
        if (process, lane) not in self._lanes:
            self._lanes[process, lane] = len(self._lanes) + 1
            about = self.place(process, lane) | {"ph": "M"}
            yield about | {"name": "thread_name", "args": {"name": lane}}

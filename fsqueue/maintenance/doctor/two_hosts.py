"""What only two hosts can show about a file system: `fsqueue doctor DIR --peer`, on both.

Both do the same at each step, and each looks at what the other did. Delays are measured by one
clock: between acting and seeing the other's answer, or from when the listing showed that the other
had acted. The moments of the contest are agreed on by the file system's clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from fsqueue.maintenance.doctor.contention import RACES, contend, judge, prepare
from fsqueue.maintenance.doctor.one_host import (
    OWN_TIME,
    SKEW_S,
    SLOWER,
    Finding,
    bad,
    clock_skew_s,
    fine,
    note,
)
from fsqueue.maintenance.doctor.rendezvous import Rendezvous
from fsqueue.pool.leases import proof_of_life
from fsqueue.pool.names import new_worker_id
from fsqueue.storage import atomic, directories
from fsqueue.storage.locks import try_lock
from fsqueue.storage.mounts import mount_of

ROUNDS: Final = 50
PINGS: Final = 5
PATIENCE_S: Final = 90.0
QUICK_S: Final = 0.5


@dataclass(slots=True)
class TwoHostTrial:
    """Both hosts' findings, and how long a change took to be seen and answered."""

    directory: str
    wait_s: float
    """How long to wait for the other host."""
    look_s: float
    """How long to wait for stat to show what a listing has shown already."""
    other: str = ""
    echo_s: float = 0.0
    """The longest of a few round trips between the hosts."""
    _skew_s: float = 0.0
    _whole: bool = True
    _delays: dict[str, float | None] = field(default_factory=dict)

    def run(self) -> Iterator[Finding]:
        """Meet, and yield findings as they are made. Raises PoolError if the other falls silent."""
        rendezvous = Rendezvous(self.directory, new_worker_id(), patience_s=PATIENCE_S)
        try:
            yield from self._meet(rendezvous)
            self._act_and_look(rendezvous)
            yield from self._delay_findings()
            yield from self._contest(rendezvous)
            rendezvous.leave()
        finally:
            rendezvous.close()

    def _meet(self, rendezvous: Rendezvous) -> Iterator[Finding]:
        directories.make(rendezvous.directory)
        for part in ("old", "grown"):
            atomic.publish(_mine(rendezvous, part), b"first\n")
        self._skew_s = skew_s = clock_skew_s(_mine(rendezvous, "clock"))
        mount = mount_of(self.directory)
        here = proof_of_life() | {"skew_s": skew_s, "type": mount.type, "options": mount.options}
        there = rendezvous.meet(here, wait_s=self.wait_s)
        self.other = str(there.get("host"))
        yield _same(here, there, self.other)
        yield _clocks(skew_s, float(there.get("skew_s", 0.0)), self.other)

    def _act_and_look(self, rendezvous: Rendezvous) -> None:
        """Fill this host's caches, change something, and see when the other's changes arrive."""
        theirs = f"{rendezvous.directory}/{rendezvous.other}"
        paths = {part: f"{theirs}-{part}" for part in ("old", "new", "grown")}
        for path in paths.values():
            _stat(path)
        rendezvous.send("primed")
        rendezvous.receive("primed")
        atomic.publish(_mine(rendezvous, "new"), b"new\n")
        atomic.rename(_mine(rendezvous, "old"), _mine(rendezvous, "renamed"))
        with atomic.Appender(_mine(rendezvous, "grown")) as file:
            file.line(b"second")
        rendezvous.send("acted")
        rendezvous.receive("acted")
        shown = {name for name in rendezvous.list() if name.startswith(f"{rendezvous.other}-")}
        self._whole = shown == {
            f"{rendezvous.other}-{part}" for part in ("new", "renamed", "grown")
        }
        heard = time.monotonic()
        if rendezvous.leads:
            self._ping(rendezvous)
        else:
            self._answer(rendezvous)
        self._look_by_stat(paths, heard)

    def _look_by_stat(self, paths: dict[str, str], begun: float) -> None:
        """Look up names until stat agrees with the listing, or `look_s` is over."""
        asks: dict[str, Callable[[], bool]] = {
            "new name, stat": lambda: _stat(paths["new"]) is not None,
            "old name, stat": lambda: _stat(paths["old"]) is None,
            "mtime, stat": lambda: (_stat(paths["grown"]) or (0, 0))[0] > len(b"first\n"),
        }
        self._delays.update(dict.fromkeys(asks))
        while asks:
            for name in [name for name, ask in asks.items() if ask()]:
                self._delays[name] = time.monotonic() - begun
                del asks[name]
            if time.monotonic() - begun > self.look_s:
                return
            time.sleep(0.005)

    def _ping(self, rendezvous: Rendezvous) -> None:
        """Measure how long it takes until the other has seen a name and its answer is here."""
        for number in range(PINGS):
            begun = time.monotonic()
            rendezvous.send(f"ping{number}")
            rendezvous.receive(f"pong{number}")
            self.echo_s = max(self.echo_s, time.monotonic() - begun)
            if self.echo_s > QUICK_S:
                break
        rendezvous.send("pinged", {"echo_s": self.echo_s})

    def _answer(self, rendezvous: Rendezvous) -> None:
        """Answer each ping until there are no more."""
        number = 0

        def answer() -> None:
            nonlocal number
            if f"{rendezvous.other}.ping{number}" in rendezvous.list():
                rendezvous.send(f"pong{number}")
                number += 1

        self.echo_s = float(rendezvous.receive("pinged", meanwhile=answer)["echo_s"])

    def _delay_findings(self) -> Iterator[Finding]:
        text = (
            f"a change on one host is listed and answered by the other within {self.echo_s:.2f} s"
        )
        if not self._whole:
            text += "; one listing showed a change and not an earlier one"
        if self.echo_s < QUICK_S:
            yield fine("listing", text)
        else:
            yield note("listing", f"{text}: use a longer lease (below)")
        for name, delay_s in self._delays.items():
            if delay_s is None:
                yield fine(
                    name, f"not up to date within {self.look_s:g} s; no decision depends on it"
                )
            elif delay_s > QUICK_S:
                yield fine(name, f"up to date after {delay_s:.1f} s; no decision depends on it")
            else:
                yield fine(name, f"up to date {delay_s:.2f} s after the listing")

    def _contest(self, rendezvous: Rendezvous) -> Iterator[Finding]:
        """Compete for names at the same moments; then one holds a lock and the other tries it."""
        arena = f"{self.directory}/.fsqueue-doctor-{min(rendezvous.me, rendezvous.other)}"
        lock = f"{rendezvous.directory}/{min(rendezvous.me, rendezvous.other)}-lock"
        if rendezvous.leads:
            directories.make(arena)
            prepare(arena, ROUNDS)
            start = time.time() + self._skew_s + 1.0 + self.echo_s
            rendezvous.send("start", {"at": start})
        else:
            start = float(rendezvous.receive("start")["at"])
        won = contend(arena, rendezvous.me, ROUNDS, start - self._skew_s)
        if rendezvous.leads:
            with try_lock(lock):
                rendezvous.send("won", {"prizes": won})
                theirs = rendezvous.receive("won")
            free = bool(theirs.get("free"))
            directories.discard(arena)
        else:
            theirs = rendezvous.receive("won")
            with try_lock(lock) as free:
                rendezvous.send("won", {"prizes": won, "free": free})
        if problems := judge([won, theirs.get("prizes", [])], ROUNDS):
            yield bad("hosts contest", f"{problems[0]}: a claim or an output could be doubled")
        else:
            each = f"{ROUNDS} times {', '.join(RACES)}"
            yield fine("hosts contest", f"{each} by both hosts at one moment: one winner each")
        if free:
            yield note("hosts flock", f"does not exclude other hosts: {SLOWER}")
        else:
            yield fine("hosts flock", "excludes the other host")


def _mine(rendezvous: Rendezvous, part: str) -> str:
    return f"{rendezvous.directory}/{rendezvous.me}-{part}"


def _stat(path: str) -> tuple[int, float] | None:
    """Return size and mtime, None if there is no such name."""
    try:
        facts = os.stat(path)
        return facts.st_size, facts.st_mtime
    except OSError:
        return None


def _same(here: dict[str, Any], there: dict[str, Any], other: str) -> Finding:
    """Report the other host. Having met shows that both look at one directory."""
    if here["boot"] and here["boot"] == there.get("boot"):
        text = f"met {other}, under the same kernel: two hosts only if each has its own mount"
        return note("same directory", text)
    if here["type"] != there.get("type"):
        return note("same directory", f"met {other}, which sees it as {there.get('type')}")
    if here["options"] != there.get("options"):
        return fine("same directory", f"met {other}; its mount options: {there.get('options')}")
    return fine("same directory", f"met {other}, with the same mount options")


def _clocks(here_s: float, there_s: float, other: str) -> Finding:
    """Compare the hosts' clocks, each by its difference from the file system's."""
    apart_s = there_s - here_s
    if abs(apart_s) < 0.1:
        return fine("hosts' clocks", "agree to 0.1 s")
    text = f"that of {other} is {abs(apart_s):.1f} s {'behind' if apart_s > 0 else 'ahead'}"
    if abs(apart_s) > SKEW_S:
        return note("hosts' clocks", f"{text}: {OWN_TIME}")
    return fine("hosts' clocks", text)


def recommend(echo_s: float, silence_s: float = 0.0) -> tuple[float, float]:
    """Return a lease and a steal interval in seconds for a file system with this echo.

    A beat comes every quarter of the lease, and must be visible well before the lease ends, even if
    all clients had to wait for one that had fallen silent.
    """
    lease_s = max(30.0, 10.0 * -(-4 * echo_s // 10), 2 * silence_s)
    return lease_s, 3.0 if echo_s < QUICK_S else 5.0

"""A storm over a store: writers and compactors are killed at random; then vectors are compared.

Each writer computes other last digits for the same keys, as workers do whose batches differ, and
notes which vectors counted, once `add` has returned them. At the end every note must still be true:
a vector that was ever returned is the one that every reader gets, on every host.

    python -m tests.support.store_storm write SHARE NUMBERS WRITER [alone]
    python -m tests.support.store_storm compact SHARE GRACE_S
    python -m tests.support.store_storm look SHARE NUMBERS [compact]

A share is a directory with the store and the notes in it. The process that runs a storm does
not touch it, so that it may be visible to other hosts only.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embed.store.compact import compact
from embed.store.verify import info, verify
from embed.store.view import View
from tests.support.processes import environment
from tests.support.stores import keys_of, open_view, put, vectors_of

BATCH = 40
WRITERS = range(8)
COMPACTORS = range(2)
FINISH_S = 240.0


class Process(Protocol):
    """A started process."""

    def send(self, number: signal.Signals) -> None:
        """Signal it."""

    def reap(self, *, deadline_s: float) -> int:
        """Wait for its end; return its exit status."""

    def said(self) -> tuple[str, str]:
        """Return what it printed on stdout and on stderr."""


class Host(Protocol):
    """Where processes are started, and the directory under which they see the share."""

    share: str

    def start(self, *argv: str) -> Process:
        """Start a command."""


class Here:
    """This host; `tests/sharedfs/hosts.py` has others."""

    def __init__(self, share: Path, logs: Path) -> None:
        self.share, self._logs, self._count = str(share), logs, 0

    def start(self, *argv: str) -> Child:
        """Start a command; what it prints goes to files."""
        self._count += 1
        return Child(argv, self._logs / f"{self._count}.log")


class Child:
    """A child of this process."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._log = log
        with open(log, "wb") as out, open(f"{log}.err", "wb") as err:
            self._process = subprocess.Popen(argv, stdout=out, stderr=err, env=environment())

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        self._process.send_signal(number)

    def reap(self, *, deadline_s: float) -> int:
        """Wait for its end; return its exit status."""
        return self._process.wait(deadline_s)

    def said(self) -> tuple[str, str]:
        """Return what it printed on stdout and on stderr."""
        return self._log.read_text(), Path(f"{self._log}.err").read_text()


@dataclass(slots=True)
class Seen:
    """What one host sees of the store when all is over."""

    notes: int = 0
    untrue: list[str] = field(default_factory=list)
    """Notes that are not true any more."""
    missing: int = 0
    strange: int = 0
    """Keys whose vector no writer computed."""
    wrong: list[str] = field(default_factory=list)
    """What `verify` says."""


@dataclass(slots=True)
class Storm:
    """Eight writers and two compactors on one store, which each host sees by its own mount."""

    hosts: Sequence[Host]
    name: str
    numbers: int = 2000
    lasts_s: float = 10.0
    kill_every_s: float = 0.13
    grace_s: float = 0.0
    """How long compactors leave what is superseded: longer than any mount shows old listings."""
    kills: int = 0
    compactions: int = 0
    seen: list[Seen] = field(default_factory=list)
    """By host."""
    wrong: list[str] = field(default_factory=list)
    """Processes that did not end as they should."""
    _started: list[Process] = field(default_factory=list)

    def run(self) -> Storm:
        """Kill processes for a while, then let each writer do its share undisturbed, and look."""
        chance = random.Random()
        names = [("write", n) for n in WRITERS] + [("compact", n) for n in COMPACTORS]
        running = {each: self._start(*each) for each in names}
        begun, every_s = time.monotonic(), self.kill_every_s
        while not self._is_over(time.monotonic() - begun):
            if time.monotonic() - begun > self.lasts_s:
                every_s *= 1.2  # on a busy machine no process lived long enough to do anything
            time.sleep(chance.uniform(0.2, 1.8) * every_s)
            each = chance.choice(list(running))
            self._kill(running[each])
            self.kills += 1
            running[each] = self._start(*each)
        for process in running.values():
            self._kill(process)
        undisturbed = [self._start("write", n, "alone") for n in WRITERS]
        self._end_well(undisturbed)
        self.seen = [self._look(host) for host in self.hosts]
        self.seen += [self._look(host, "compact") for host in self.hosts]
        self._read_logs()
        return self

    def _is_over(self, seconds: float) -> bool:
        """Return whether it lasted long enough, and both kinds of processes got something done."""
        if seconds < self.lasts_s:
            return False
        said = "".join(process.said()[0] for process in self._started)
        return "made" in said and "noted" in said or seconds > FINISH_S

    def _start(self, verb: str, number: int, *more: str) -> Process:
        host = self.hosts[number % len(self.hosts)]
        words = [str(self.numbers), str(number), *more]
        return self._on(host, verb, *(words if verb == "write" else [str(self.grace_s)]))

    def _on(self, host: Host, verb: str, *words: str) -> Process:
        process = host.start(sys.executable, "-m", __name__, verb, host.share, *words)
        self._started.append(process)
        return process

    def _kill(self, process: Process) -> None:
        process.send(signal.SIGKILL)
        process.reap(deadline_s=FINISH_S)

    def _end_well(self, processes: Sequence[Process]) -> None:
        for process in processes:
            if status := process.reap(deadline_s=FINISH_S):
                self.wrong.append(f"ended with {status}: {process.said()[1][-2000:]}")

    def _look(self, host: Host, *more: str) -> Seen:
        process = self._on(host, "look", str(self.numbers), *more)
        self._end_well([process])
        return Seen(**json.loads(process.said()[0]))

    def _read_logs(self) -> None:
        for process in self._started:
            out, err = process.said()
            self.compactions += out.count("made")
            if "Traceback" in err:
                self.wrong.append(err[-2000:])

    def verify(self) -> str:
        """Assert that every key is there as computed; return a summary."""
        assert not self.wrong, "\n".join(self.wrong)
        for seen in self.seen:
            assert not seen.wrong, "\n".join(seen.wrong)
            assert not seen.untrue
            assert (seen.missing, seen.strange) == (0, 0)
        assert self.kills and self.compactions and self.seen[0].notes > self.numbers
        return (
            f"{self.name}: a store of {self.numbers} keys, {self.kills} kills, "
            f"{self.compactions} compactions, {self.seen[0].notes} vectors given out, all true"
        )


# ---- in the processes ----


def write(share: Path, numbers: int, writer: int, *, alone: bool) -> None:
    """Store random batches forever; or, when the storm is over, this writer's numbers."""
    view = open_view(share / "store")
    mine = list(range(numbers)[writer :: len(WRITERS)] if alone else range(numbers))
    with open(share / f"notes-{writer}", "a") as file:
        for batch in _batches(mine, endless=not alone):
            counting = put(view, batch, f"w{writer}")
            for number, vector in zip(batch, counting, strict=True):
                file.write(json.dumps([number, vector.tobytes().hex()]) + "\n")
            file.flush()
            print("noted", flush=True)


def _batches(mine: list[int], *, endless: bool) -> Iterator[list[int]]:
    chance = random.Random()
    while endless:
        yield chance.sample(mine, BATCH)
    for start in range(0, len(mine), BATCH):
        yield mine[start : start + BATCH]


def compact_for_ever(share: Path, grace_s: float) -> None:
    """Compact, and remove what is superseded: at once, if readers are to meet what has gone."""
    view = open_view(share / "store")
    while True:
        done = compact(view, grace_s=grace_s)
        if done.made or done.removed:
            print("made", done, flush=True)
        time.sleep(0.02)


def look(share: Path, numbers: int, *, last: bool) -> Seen:
    """Compare what is stored with every note; verify all of it, after a compaction if it is the
    last look."""
    seen, view = Seen(), open_view(share / "store")
    if last:
        done = compact(view, grace_s=0)
        found = info("default", view)
        if (found.vectors, found.duplicates) != (numbers, 0) or done.waiting:
            seen.wrong.append(f"after the last compaction: {found} {done}")
    _compare(view, share, numbers, seen)
    seen.wrong += list(verify(view))
    return seen


def _compare(view: View, share: Path, numbers: int, seen: Seen) -> None:
    found, vectors = view.lookup(keys_of(range(numbers)))
    seen.missing = int((~found).sum())
    if seen.missing:
        return
    possible = np.stack([vectors_of(range(numbers), f"w{n}") for n in WRITERS])
    seen.strange = int((~(possible == vectors).all(2).any(0)).sum())
    for notes in share.glob("notes-*"):
        for number, vector in _notes(notes):
            seen.notes += 1
            if vectors[number].tobytes().hex() != vector:
                seen.untrue.append(f"{notes.name}: {number}")


def _notes(path: Path) -> Iterator[Any]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # a kill cut it short, and the next line may hang on to it


def main() -> None:
    """Be one of the processes."""
    verb, share, *rest = sys.argv[1:]
    if verb == "write":
        write(Path(share), int(rest[0]), int(rest[1]), alone="alone" in rest)
    elif verb == "compact":
        compact_for_ever(Path(share), float(rest[0]))
    else:
        print(json.dumps(asdict(look(Path(share), int(rest[0]), last="compact" in rest))))


if __name__ == "__main__":
    main()

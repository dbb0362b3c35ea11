"""A storm over a store: writers and compactors are killed at random; then vectors are compared.

Each writer computes other last digits for the same keys, as workers do whose batches differ, and
records the vectors that `add` returned. At the end every record must still be true: a vector that
was returned once is what every reader gets, on every host.

    python -m tests.support.store_storm write SHARE NUMBERS WRITER [alone]
    python -m tests.support.store_storm compact SHARE GRACE_S
    python -m tests.support.store_storm compare SHARE NUMBERS [compact]

A share is a directory with the store and the records in it. The process that runs a storm does not
access it, so it may be one that only other hosts can see.
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
from embed.store.info import info
from embed.store.verify import verify
from embed.store.view import View
from tests.support.processes import environment
from tests.support.stores import keys_of, open_view, put, vectors_of

BATCH = 40
WRITERS = range(8)
COMPACTORS = range(2)
DEADLINE_S = 240.0


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
class Comparison:
    """What one host finds in the store at the end."""

    records: int = 0
    changed: list[str] = field(default_factory=list)
    """Records that are no longer true."""
    missing: int = 0
    unknown: int = 0
    """Keys with a vector that no writer computed."""
    problems: list[str] = field(default_factory=list)
    """Reported by `verify`."""


@dataclass(slots=True)
class Storm:
    """Eight writers and two compactors on one store, which each host sees by its own mount."""

    hosts: Sequence[Host]
    name: str
    numbers: int = 2000
    lasts_s: float = 10.0
    kill_every_s: float = 0.13
    grace_s: float = 0.0
    """How long compactors keep superseded files: longer than any mount shows old listings."""
    kills: int = 0
    compactions: int = 0
    comparisons: list[Comparison] = field(default_factory=list)
    """By host."""
    failures: list[str] = field(default_factory=list)
    """Errors of processes that should have succeeded."""
    _started: list[Process] = field(default_factory=list)

    def run(self) -> Storm:
        """Kill for a while, then let each writer finish its share undisturbed, and compare."""
        rng = random.Random()
        names = [("write", n) for n in WRITERS] + [("compact", n) for n in COMPACTORS]
        processes = {each: self._start(*each) for each in names}
        begun, every_s = time.monotonic(), self.kill_every_s
        while not self._is_over(time.monotonic() - begun):
            if time.monotonic() - begun > self.lasts_s:
                every_s *= 1.2  # on a busy machine no process may have lived long enough
            time.sleep(rng.uniform(0.2, 1.8) * every_s)
            each = rng.choice(list(processes))
            self._kill(processes[each])
            self.kills += 1
            processes[each] = self._start(*each)
        for process in processes.values():
            self._kill(process)
        self._expect_success([self._start("write", n, "alone") for n in WRITERS])
        self.comparisons = [self._compare(host) for host in self.hosts]
        self.comparisons += [self._compare(host, "compact") for host in self.hosts]
        self._read_logs()
        return self

    def _is_over(self, seconds: float) -> bool:
        """Return whether it lasted long enough, and killed processes that had done something."""
        if seconds < self.lasts_s:
            return False
        output = "".join(process.said()[0] for process in self._started)
        return "made" in output and "stored" in output or seconds > DEADLINE_S

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
        process.reap(deadline_s=DEADLINE_S)

    def _expect_success(self, processes: Sequence[Process]) -> None:
        for process in processes:
            if status := process.reap(deadline_s=DEADLINE_S):
                self.failures.append(f"ended with {status}: {process.said()[1][-2000:]}")

    def _compare(self, host: Host, *more: str) -> Comparison:
        process = self._on(host, "compare", str(self.numbers), *more)
        self._expect_success([process])
        return Comparison(**json.loads(process.said()[0]))

    def _read_logs(self) -> None:
        for process in self._started:
            out, err = process.said()
            self.compactions += out.count("made")
            if "Traceback" in err:
                self.failures.append(err[-2000:])

    def verify(self) -> str:
        """Assert that every vector is as it was first returned; return a line of counts."""
        assert not self.failures, "\n".join(self.failures)
        for found in self.comparisons:
            assert not found.problems, "\n".join(found.problems)
            assert not found.changed
            assert (found.missing, found.unknown) == (0, 0)
        assert self.kills and self.compactions and self.comparisons[0].records > self.numbers
        return (
            f"{self.name}: a store of {self.numbers} keys, {self.kills} kills, "
            f"{self.compactions} compactions, {self.comparisons[0].records} vectors, all unchanged"
        )


# ---- in the processes ----


def write(share: Path, numbers: int, writer: int, *, alone: bool) -> None:
    """Store random batches forever; or, after the storm, this writer's own numbers."""
    view = open_view(share / "store")
    own = list(range(numbers)[writer :: len(WRITERS)] if alone else range(numbers))
    with open(share / f"records-{writer}", "a") as file:
        for batch in _batches(own, endless=not alone):
            used = put(view, batch, f"w{writer}")
            for number, vector in zip(batch, used, strict=True):
                file.write(json.dumps([number, vector.tobytes().hex()]) + "\n")
            file.flush()
            print("stored", flush=True)


def _batches(numbers: list[int], *, endless: bool) -> Iterator[list[int]]:
    rng = random.Random()
    while endless:
        yield rng.sample(numbers, BATCH)
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH]


def compact_forever(share: Path, grace_s: float) -> None:
    """Compact, and remove superseded files: at once, if readers are to find files removed."""
    view = open_view(share / "store")
    while True:
        done = compact(view, grace_s=grace_s)
        if done.made or done.removed:
            print("made", done, flush=True)
        time.sleep(0.02)


def compare(share: Path, numbers: int, *, compact_first: bool) -> Comparison:
    """Compare the store with every record, and verify all of it, optionally compacted before."""
    result, view = Comparison(), open_view(share / "store")
    if compact_first:
        done = compact(view, grace_s=0)
        found = info("default", view)
        if (found.vectors, found.duplicates) != (numbers, 0) or done.waiting:
            result.problems.append(f"after the last compaction: {found} {done}")
    _compare_records(view, share, numbers, result)
    result.problems += list(verify(view))
    return result


def _compare_records(view: View, share: Path, numbers: int, result: Comparison) -> None:
    found, vectors = view.lookup(keys_of(range(numbers)))
    result.missing = int((~found).sum())
    if result.missing:
        return
    possible = np.stack([vectors_of(range(numbers), f"w{n}") for n in WRITERS])
    result.unknown = int((~(possible == vectors).all(2).any(0)).sum())
    for path in share.glob("records-*"):
        for number, vector in _records(path):
            result.records += 1
            if vectors[number].tobytes().hex() != vector:
                result.changed.append(f"{path.name}: {number}")


def _records(path: Path) -> Iterator[Any]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # truncated by a kill; the next line may be joined to it


def main() -> None:
    """Run one of the processes."""
    verb, share, *rest = sys.argv[1:]
    if verb == "write":
        write(Path(share), int(rest[0]), int(rest[1]), alone="alone" in rest)
    elif verb == "compact":
        compact_forever(Path(share), float(rest[0]))
    else:
        result = compare(Path(share), int(rest[0]), compact_first="compact" in rest)
        print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()

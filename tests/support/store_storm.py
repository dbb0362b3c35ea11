"""A storm over a store: writers and compactors are killed at random; then vectors are compared.

Each writer computes other last digits for the same keys, as workers do whose batches differ, and
notes which vectors counted, once `add` has told it. At the end every note must still be true: a
vector that was ever given out is the one that everybody gets.

    python -m tests.support.store_storm write STORE NUMBERS NOTES SALT [SHARE]
    python -m tests.support.store_storm compact STORE
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from embed.store.compact import compact
from embed.store.verify import info, verify
from embed.store.view import View
from tests.support.stores import keys_of, open_view, put, vectors_of

BATCH = 40
GRACE_S = 0.0


def write(root: Path, numbers: int, notes: Path, salt: str, share: int | None) -> None:
    """Store random batches for ever; or, with a share, every number that is of it, and end."""
    view = open_view(root)
    mine = range(numbers)[share :: len(WRITERS)] if share is not None else range(numbers)
    chance = random.Random()
    with open(notes, "a") as file:
        for batch in _batches(list(mine), chance, endless=share is None):
            counting = put(view, batch, salt)
            for number, vector in zip(batch, counting, strict=True):
                file.write(json.dumps([number, vector.tobytes().hex()]) + "\n")
            file.flush()


def _batches(mine: list[int], chance: random.Random, *, endless: bool) -> Iterator[list[int]]:
    while endless:
        yield chance.sample(mine, BATCH)
    for start in range(0, len(mine), BATCH):
        yield mine[start : start + BATCH]


WRITERS = range(8)


@dataclass(slots=True)
class Tally:
    """What is found when the storm is over."""

    kills: int = 0
    notes: int = 0
    untrue: list[str] = field(default_factory=list)
    """Notes that are not true any more."""
    missing: int = 0
    strange: int = 0
    """Keys whose vector nobody computed."""
    wrong: list[str] = field(default_factory=list)
    """What `verify` says."""
    compactions: int = 0


class Storm:
    """Eight writers and two compactors on one store, which may be seen by several paths."""

    def __init__(self, roots: list[Path], work: Path, *, numbers: int, lasts_s: float) -> None:
        self._roots, self._work, self._numbers, self._lasts_s = roots, work, numbers, lasts_s
        self._chance = random.Random()
        self._tally = Tally()

    def run(self) -> Tally:
        """Kill for a while, then let each writer do its share in peace, and look."""
        open_view(self._roots[0])
        crew = {name: self._start(*name) for name in [*(("write", n) for n in WRITERS),
                                                      ("compact", 0), ("compact", 1)]}  # fmt: skip
        until = time.monotonic() + self._lasts_s
        while time.monotonic() < until:
            time.sleep(self._chance.uniform(0.02, 0.25))  # the weather; nothing waits for it
            name = self._chance.choice(list(crew))
            os.killpg(crew[name].pid, signal.SIGKILL)
            crew[name].wait()
            self._tally.kills += 1
            crew[name] = self._start(*name)
        for process in crew.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for process in [self._start("write", n, n) for n in WRITERS]:
            if process.wait(120):
                self._tally.wrong.append(f"a writer ended with {process.returncode}")
        self._look()
        return self._tally

    def _start(self, verb: str, number: int, share: int | None = None) -> subprocess.Popen[bytes]:
        root = self._roots[number % len(self._roots)]
        words = [verb, str(root)]
        if verb == "write":
            words += [str(self._numbers), str(self._work / f"notes-{number}"), f"w{number}"]
            words += [str(share)] if share is not None else []
        with open(self._work / f"{verb}-{number}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", __name__, *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _look(self) -> None:
        for root in self._roots:
            view = open_view(root)
            self._compare(view)
        done = compact(view, grace_s=0)
        self._tally.compactions = sum(
            path.read_text().count("made") for path in self._work.glob("compact-*.log")
        )
        self._compare(view)
        self._tally.wrong += list(verify(view))
        found = info("default", view)
        if (found.vectors, found.duplicates) != (self._numbers, 0) or done.waiting:
            self._tally.wrong.append(f"after the last compaction: {found} {done}")
        for log in self._work.glob("*.log"):
            if "Traceback" in (text := log.read_text()):
                self._tally.wrong.append(f"{log.name}: {text[-2000:]}")

    def _compare(self, view: View) -> None:
        found, vectors = view.lookup(keys_of(range(self._numbers)))
        self._tally.missing += int((~found).sum())
        if not found.all():
            return
        possible = np.stack([vectors_of(range(self._numbers), f"w{n}") for n in WRITERS])
        self._tally.strange += int((~(possible == vectors).all(2).any(0)).sum())
        for notes in self._work.glob("notes-*"):
            for line in notes.read_text().splitlines(keepends=True):
                try:
                    number, vector = json.loads(line)
                except ValueError:
                    continue  # a kill cut it short, and the next line may hang on to it
                self._tally.notes += 1
                if vectors[number].tobytes().hex() != vector:
                    self._tally.untrue.append(f"{notes.name}: {number}")


def main() -> None:
    """Be one of the processes."""
    verb, root, *rest = sys.argv[1:]
    if verb == "write":
        numbers, notes, salt, *share = rest
        write(Path(root), int(numbers), Path(notes), salt, int(share[0]) if share else None)
        return
    view = open_view(Path(root))
    while True:
        done = compact(view, grace_s=GRACE_S)
        if done.made or done.removed:
            print("made", done, flush=True)
        time.sleep(0.02)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Run a pool with real workers of unequal speed, and print when each finished and what it stole.

    scripts/bench/unequal.py                       three workers, 1 : 1.5 : 2.5, half a minute
    scripts/bench/unequal.py --weights right       the planner knows; else it takes them for equals

A claim is a program that sleeps for the size of its file over its worker's speed, so speeds hold on
a busy machine too. What is printed is from the workers' journals.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SPEEDS = (1.0, 1.5, 2.5)
FSQUEUE = (sys.executable, "-m", "fsqueue")
SLEEP = """
ms=$(( $(wc -c < "$1") * 10 / SPEED_TENTHS ))
exec sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
"""
"""A file of 1000 bytes takes a second at speed 1."""


@dataclass(frozen=True, slots=True)
class Finish:
    """One worker: its speed, when its last claim ended after the first was taken, its steals."""

    speed: float
    seconds: float
    done: int
    stolen: tuple[dict[str, object], ...]


def write_inputs(folder: Path, seconds: float, count: int, seed: int) -> list[str]:
    """Write files of lognormal size, that take all workers together `seconds`."""
    chance = random.Random(seed)
    sizes = [chance.lognormvariate(0, 0.7) for _ in range(count)]
    scale = seconds * sum(SPEEDS) * 1000 / sum(sizes)
    paths = []
    for number, size in enumerate(sizes):
        path = folder / f"in{number:03d}"
        path.write_bytes(b"x" * int(size * scale))
        paths.append(str(path))
    return paths


def run(place: Path, *, seconds: float, count: int, right: bool, seed: int = 1) -> list[Finish]:
    """Plan, let three workers do it, and return how each of them ended."""
    pool, folder = str(place / "pool"), place / "in"
    folder.mkdir()
    inputs = write_inputs(folder, seconds, count, seed)
    weights = SPEEDS if right else (1.0,) * len(SPEEDS)
    gpus = ",".join(f"cpu:{weight}" for weight in weights)
    words = ["plan", "command", pool, *inputs, "--gpus", gpus]
    program = ["--", "sh", "-c", SLEEP, "sh", "{input}"]
    subprocess.run([*FSQUEUE, *words, *program], check=True, stdout=subprocess.DEVNULL)
    workers = [_start(pool, f"cpu{n}", speed) for n, speed in enumerate(SPEEDS)]
    statuses = [worker.wait() for worker in workers]
    if any(statuses):
        raise SystemExit(f"the workers left with {statuses}; their logs are in {pool}/events")
    return finishes(Path(pool))


def _start(pool: str, spool: str, speed: float) -> subprocess.Popen[bytes]:
    with open(f"{pool}/events/{spool}.log", "wb") as log:
        return subprocess.Popen(
            [*FSQUEUE, "work", pool, "--spool", spool, "--others-ok"],
            env=os.environ | {"SPEED_TENTHS": str(round(10 * speed)), "CUDA_VISIBLE_DEVICES": ""},
            stderr=log,
        )


def finishes(pool: Path) -> list[Finish]:
    """Return how each worker ended, by its journal, the slowest first."""
    journals = {}
    for path in (pool / "events").glob("*.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        spool = next(event["spool"] for event in events if event["event"] == "joined")
        journals[spool] = events
    begun = min(e["t"] for each in journals.values() for e in each if e["event"] == "took")
    found = []
    for number, speed in enumerate(SPEEDS):
        events = journals[f"cpu{number}"]
        ended = [event["t"] for event in events if event["event"] == "finished"]
        stolen = tuple(event for event in events if event["event"] == "stole")
        found.append(Finish(speed, max(ended) - begun, len(ended), stolen))
    return found


def spread(found: Sequence[Finish]) -> float:
    """Return by what part of the whole the first to finish was before the last."""
    ends = [each.seconds for each in found]
    return (max(ends) - min(ends)) / max(ends)


def main() -> None:
    """Print the table as Markdown, and the steals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="at best (default 20)")
    parser.add_argument("--claims", type=int, default=60, help="default 60")
    parser.add_argument("--weights", choices=("right", "equal"), default="equal")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        right = given.weights == "right"
        found = run(Path(place), seconds=given.seconds, count=given.claims, right=right)
    print("| speed | claims | stolen | last finished after |\n|---|---|---|---|")
    for each in found:
        print(f"| {each.speed:g} | {each.done} | {len(each.stolen)} | {each.seconds:.1f} s |")
    print(f"\nfinish times within {spread(found):.1%}; at best {given.seconds:.1f} s\n")
    for each in found:
        for event in each.stolen:
            print(f"{event['worker']} stole {event['id']}, cost {event['cost']}, from "
                  f"{event['from']}")  # fmt: skip


if __name__ == "__main__":
    main()

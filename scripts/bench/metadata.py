#!/usr/bin/env python3
"""Print the metadata operations of one claim, for pools with more and more waiting claims.

    scripts/bench/metadata.py 1000 20000 100000
    scripts/bench/metadata.py --idle
    scripts/bench/metadata.py --growth

Metadata operations per claim of a handler that does nothing, taken and finished, counted with
strace. Exit status 1 if the last pool costs more than the first. With --idle, those of workers that
have nothing to do, per second, over two minutes with the default interval and lease; exit status 1
if any is two or more. With --growth, those of one worker's whole life, with its guardian: beside 10
and 1,000 other living workers, after 0 and 100,000 that left, and in pools of 10 and 1,000 spools;
exit status 1 if they differ by more than a tenth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.growth import operations_of_a_life
from tests.support.idle_workers import IdleWorkers, start_idle_workers
from tests.support.strace import fill, operations_per_claim

GROWTH = {"workers": (10, 1_000), "left": (0, 100_000), "spools": (10, 1_000)}


def main() -> int:
    """Count; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("waiting", type=int, nargs="*", default=[1_000, 20_000, 100_000])
    parser.add_argument("--idle", action="store_true", help="count those of idle workers")
    parser.add_argument("--growth", action="store_true", help="count a life in larger pools")
    given = parser.parse_args()
    if given.growth:
        return count_growth()
    return count_idle() if given.idle else count_claims(given.waiting)


def count_growth() -> int:
    """Count one worker's operations in pools that differ in one size; return the exit status."""
    grown = False
    for what, sizes in GROWTH.items():
        totals = []
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="metadata-") as name:
                counts = operations_of_a_life(Path(name), **{what: size})
            totals.append(counts.total())
            listed = ", ".join(f"{call} {count}" for call, count in counts.most_common(9))
            print(f"{size:>9,} {what:<9} {totals[-1]:6,}  {listed}", flush=True)
        grown |= max(totals) > 1.1 * min(totals)
    return int(grown)


def count_idle() -> int:
    """Count what idle workers of every kind cost; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="metadata-") as name:
        scene = IdleWorkers(Path(name))
        try:
            start_idle_workers(scene)
            counted = scene.count()
        finally:
            scene.end()
    for kind, (per_s, count) in counted.items():
        places: Counter[str] = Counter()
        for call, number in count.items():
            places[call.split()[1]] += number
        listed = ", ".join(f"{place} {number}" for place, number in places.most_common())
        print(f"{kind:<26}  {per_s:4.2f} a second  {listed}")
    return int(max(per_s for per_s, _ in counted.values()) >= 2.0)


def count_claims(numbers: Sequence[int]) -> int:
    """Count the operations of a claim for each number of waiting claims; return the exit status."""
    totals = []
    for waiting in numbers:
        with tempfile.TemporaryDirectory(prefix="metadata-") as name:
            pool = fill(Path(name, "pool"), waiting)
            for whose, spool in (("own", "cpu0"), ("stolen", "cpu1")):
                counts = operations_per_claim(Path(name), pool, spool)
                totals.append(sum(counts.values()))
                listed = ", ".join(f"{call} {count:g}" for call, count in counts.items())
                print(f"{waiting:>9,} waiting  {whose:<6}  {totals[-1]:5.2f}  {listed}", flush=True)
    return int(any(last > first + 0.1 for first, last in zip(totals[:2], totals[-2:], strict=True)))


if __name__ == "__main__":
    sys.exit(main())

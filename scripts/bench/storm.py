#!/usr/bin/env python3
"""Raise storms in a row, each with its own seed, and print a table of what they did.

    scripts/bench/storm.py --runs 20               the whole thing: 20 storms of 60 s
    scripts/bench/storm.py --runs 1 --seed 7 --lasts 20

A worker of six is killed by SIGKILL every 0.3 s and replaced, while 400 and more claims run a real
program. Afterwards every claim must be done, every output be there once, whole, and the same file
that was first seen. Exit status 1 if anything was lost, doubled or torn.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.storm import Storm, Tally, Weather

HEADER = "seed seconds claims kills hits recovered adopted doubled lost torn errors problems"


def main() -> int:
    """Run the storms; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="storms in a row (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the first one (default: 1)")
    parser.add_argument("--lasts", type=float, default=60.0, metavar="S", help="default: 60")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the pools there")
    given = parser.parse_args()
    print(" ".join(column.rjust(width(column)) for column in HEADER.split()), flush=True)
    bad = 0
    for seed in range(given.seed, given.seed + given.runs):
        directory = Path(tempfile.mkdtemp(prefix=f"storm-{seed}-", dir=given.keep))
        tally = Storm(directory, Weather(seed, lasts_s=given.lasts)).run()
        print(row(seed, tally), flush=True)
        for problem in tally.problems:
            print(f"    {problem}", flush=True)
        broken = bool(tally.doubled or tally.lost or tally.torn or tally.problems)
        bad += broken
        if not (broken or given.keep):
            shutil.rmtree(directory)
        elif broken:
            print(f"    kept: {directory}", flush=True)
    print(f"{given.runs - bad} of {given.runs} storms were weathered")
    return 1 if bad else 0


def row(seed: int, tally: Tally) -> str:
    """Return one line of the table."""
    cells = [
        seed, round(tally.seconds, 1), tally.planned, tally.kills, tally.hits, tally.recovered,
        tally.adopted, tally.doubled, tally.lost, tally.torn, tally.other_errors,
        len(tally.problems),
    ]  # fmt: skip
    columns = HEADER.split()
    return " ".join(str(cell).rjust(width(name)) for cell, name in zip(cells, columns, strict=True))


def width(column: str) -> int:
    """Return how wide a column is."""
    return max(len(column), 6)


if __name__ == "__main__":
    sys.exit(main())

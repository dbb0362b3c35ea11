#!/usr/bin/env python3
"""Run storms one after the other, each with its own seed, and print a table of the results.

    scripts/bench/storm.py --runs 20               the full benchmark: 20 storms of 60 s
    scripts/bench/storm.py --runs 1 --seed 7 --lasts 20
    scripts/bench/storm.py --harsh --lasts 40      also pauses, OOM kills, clock jumps, bad disks
    scripts/bench/storm.py --life --runs 5         bad inputs, hangs, closed terminals, a purge, ...

Every 0.3 s one of six workers is killed by SIGKILL and replaced, while 400 or more claims run a
real program, planned at three priorities. Afterwards every claim must be done, and every output be
there once, whole, and still the file that was first seen. Exit status 1 if anything was lost,
doubled or torn.

With --life, 1,000 claims of which 7 in 100 are a nuisance are done by four workers that are
disturbed all the time, and the good ones among them once more in peace. Exit status 1 if anything
that could be done was not, if anything else was not named with its true reason, or if it took more
than 1.2 times as long.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.storm import Storm, StormResult, StormSettings
from tests.support.storm_of_life import Life, LifeResult, LifeSettings
from tests.support.storm_with_faults import faulty_settings, faulty_storm

HEADER = (
    "seed seconds claims outputs kills hits recovered adopted doubled lost torn errors problems"
)
HARM = {
    "pauses": "pauses",
    "zombies": "zombies",
    "oom kills": "oom",
    "clock jumps": "jumps",
    "scratch directories deleted": "deleted",
    "disk full": "full",
    "no inodes": "inodes",
    "read-only": "readonly",
    "disk lost": "eio",
    "stopped by the disk": "stopped",
}
"""What a storm with faults counts as well, and the column of each."""


def main() -> int:
    """Run the storms; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="number of storms (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first storm (default: 1)")
    parser.add_argument(
        "--lasts",
        type=float,
        default=60.0,
        metavar="S",
        help="duration of each storm (default: 60)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the pools in this directory")
    parser.add_argument("--harsh", action="store_true", help="also cause every other kind of fault")
    parser.add_argument("--life", action="store_true", help="run storms of ordinary life")
    parser.add_argument(
        "--claims", type=int, default=1000, help="claims of a storm of life (default: 1000)"
    )
    given = parser.parse_args()
    if given.life:
        return storms_of_life(given.seed, given.runs, given.claims, given.keep)
    columns = [*HEADER.split(), *(HARM.values() if given.harsh else ())]
    print(" ".join(column.rjust(width(column)) for column in columns), flush=True)
    bad = 0
    sums: Counter[str] = Counter()
    for seed in range(given.seed, given.seed + given.runs):
        directory = Path(tempfile.mkdtemp(prefix=f"storm-{seed}-", dir=given.keep))
        tally = run_storm(directory, seed, lasts_s=given.lasts, harsh=given.harsh)
        found = cells(seed, tally, harsh=given.harsh)
        sums.update(dict(zip(columns, found, strict=True)))
        print(row(columns, found), flush=True)
        for problem in tally.problems:
            print(f"    {problem}", flush=True)
        broken = bool(tally.doubled or tally.lost or tally.torn or tally.problems)
        bad += broken
        if not (broken or given.keep):
            shutil.rmtree(directory)
        elif broken:
            print(f"    kept: {directory}", flush=True)
    sums["seed"] = 0
    print(row(columns, [round(sums[name]) for name in columns]))
    print(f"{given.runs - bad} of {given.runs} storms passed")
    return 1 if bad else 0


LIFE_HEADER = (
    "seed claims bad hangs leaves debris long HUP INT flaky stuck purged calm_s storm_s ratio done "
    "failed in_vain missing status problems"
).split()
SLOWER_MAX = 1.2


def storms_of_life(seed: int, runs: int, claims: int, keep: Path | None) -> int:
    """Run storms of ordinary life; return the exit status."""
    print(row(LIFE_HEADER, LIFE_HEADER), flush=True)
    bad = 0
    for number in range(seed, seed + runs):
        directory = Path(tempfile.mkdtemp(prefix=f"life-{number}-", dir=keep))
        result = Life(directory, LifeSettings(number, claims=claims)).run()
        print(row(LIFE_HEADER, life_cells(number, result)), flush=True)
        for problem in result.problems:
            print(f"    {problem}", flush=True)
        failed = bool(result.problems) or result.ratio > SLOWER_MAX
        bad += failed
        if not (failed or keep):
            shutil.rmtree(directory)
        elif failed:
            print(f"    kept: {directory}", flush=True)
    print(f"{runs - bad} of {runs} storms passed")
    return 1 if bad else 0


def life_cells(seed: int, result: LifeResult) -> list[object]:
    """Return one line of the table of storms of life."""
    kinds, harm = result.kinds, result.harm
    return [
        seed, kinds.total(), *(kinds[kind] for kind in LIFE_HEADER[2:7]), harm["SIGHUP"],
        harm["SIGINT"], harm["flaky mounts"], harm["stuck logs"], harm["purged"],
        round(result.calm_s, 1), round(result.storm_s, 1), round(result.ratio, 2), result.done,
        result.failed, result.put_back, result.missing, result.status, len(result.problems),
    ]  # fmt: skip


def run_storm(directory: Path, seed: int, *, lasts_s: float, harsh: bool) -> StormResult:
    """Run one storm."""
    if not harsh:
        return Storm(directory, StormSettings(seed, lasts_s=lasts_s)).run()
    with faulty_storm(directory, faulty_settings(seed, lasts_s=lasts_s)) as storm:
        return storm.run()


def cells(seed: int, tally: StormResult, *, harsh: bool) -> list[float]:
    """Return the numbers of one line of the table."""
    found = [
        seed, round(tally.seconds, 1), tally.planned, tally.done, tally.kills, tally.hits,
        tally.recovered, tally.adopted, tally.doubled, tally.lost, tally.torn, tally.other_errors,
        len(tally.problems),
    ]  # fmt: skip
    return found + [tally.harm[kind] for kind in HARM] if harsh else found


def row(columns: Sequence[str], numbers: Sequence[object]) -> str:
    """Return one line of the table."""
    pairs = zip(numbers, columns, strict=True)
    return " ".join(str(number).rjust(width(name)) for number, name in pairs)


def width(column: str) -> int:
    """Return the width of a column."""
    return max(len(column), 6)


if __name__ == "__main__":
    sys.exit(main())

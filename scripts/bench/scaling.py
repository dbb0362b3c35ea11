#!/usr/bin/env python3
"""Measure what a second worker is worth on one machine: two workers against one, a thread each.

    scripts/bench/scaling.py                 three rounds, some minutes; leave the machine alone
    scripts/bench/scaling.py --workers 4 --rounds 1

The same claims each time: the demonstration's proteins, ESM-2 in the shape of the published 8M
model, random weights. One worker and several take turns; counted are the tokens between the first
batch that began and the last that ended, so that loading does not count and idling at the end does.
Prints tokens/s of every round and the ratio of the best; exit status 1 if it is below 0.9 per
worker.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.make_model import write_random
from tests.support.killed_worker import read_log, start

PROTEINS = Path(__file__).resolve().parents[1] / "data" / "HG003685.faa"


def rate(folder: Path, model: Path, workers: int, dtype: str) -> float:
    """Plan, work with this many workers, and return their total tokens per second."""
    pool = folder / "pool"
    words = [pool, PROTEINS, "--model", model, "--gpus", f"cpux{workers}", "--dtype", dtype]
    line = [sys.executable, "-m", "fsqueue", "plan", "embed", *map(str, words)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    logs = [folder / f"{n}.log" for n in range(workers)]
    running = [
        start(pool, log, "--spool", f"cpu{n}", "--steal-interval", "0.5")
        for n, log in enumerate(logs)
    ]
    for worker in running:
        if worker.wait() != 0:
            sys.exit(f"a worker ended with status {worker.returncode}; see {pool}/events")
    batches = [batch for log in logs for batch in read_log(log)]
    span = max(batch.ended for batch in batches) - min(batch.began for batch in batches)
    return sum(batch.tokens for batch in batches) / span


def main() -> int:
    """Measure in turns; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    best = {1: 0.0, given.workers: 0.0}
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        write_random(Path(name, "model"))
        for number in range(given.rounds):
            for workers in best:
                folder = Path(name, f"{number}-{workers}")
                folder.mkdir()
                found = rate(folder, Path(name, "model"), workers, given.dtype)
                best[workers] = max(best[workers], found)
                load = os.getloadavg()[0]
                print(f"{workers} workers: {found:,.0f} tokens/s (load {load:.1f})", flush=True)
    ratio = best[given.workers] / best[1]
    print(f"{given.workers} workers, best of {given.rounds}: {ratio:.2f} times one")
    return int(ratio < 0.9 * given.workers)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Print what one claim costs a file server, for pools where more and more claims wait.

    scripts/bench/metadata.py 1000 20000 100000

Metadata operations per claim of a handler that does nothing, taken and finished, counted with
strace. Exit status 1 if the last pool costs more than the first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.systemcalls import fill, operations_per_claim


def main() -> int:
    """Count; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("waiting", type=int, nargs="*", default=[1_000, 20_000, 100_000])
    given = parser.parse_args()
    totals = []
    for waiting in given.waiting:
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

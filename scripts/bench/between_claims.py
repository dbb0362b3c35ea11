#!/usr/bin/env python3
"""Measure for how long a worker's device has nothing to compute between two of its claims.

    scripts/bench/between_claims.py                      claims of a few seconds
    scripts/bench/between_claims.py --sequences 4000     longer claims

One worker and one pool on a disk, ESM-2 in the shape of the published 8M model, on the CPU. A pause
is from the last row of a claim to the first launch of the next: the table is written and synced,
two claims and a journal move, the next claim is read, and its first sequences are parsed and
tokenized. A claim of the planner's takes 90 s on the reference GPU, and the pause is the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embed.engine.device import Cpu
from scripts.make_model import write_random

CLAIM_S = 90.0


def write_proteins(path: Path, count: int, seed: int) -> None:
    """Write proteins of the lengths that proteomes have."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            length = min(max(int(rng.lognormvariate(5.65, 0.6)), 20), 1022)
            file.write(f">p{number}\n{''.join(rng.choices('LAGVSERTIDPKQNFYMHWC', k=length))}\n")


def watch_launches() -> list[tuple[float, float]]:
    """Return a list that grows by the beginning and the end of every launch."""
    seen: list[tuple[float, float]] = []
    real = Cpu.launch

    def launch(self: Cpu, *given: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        found = real(self, *given, **options)
        seen.append((begun, time.perf_counter()))
        return found

    Cpu.launch = launch  # type: ignore[method-assign]
    return seen


def main() -> None:
    """Print the pauses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--claims", type=int, default=12)
    parser.add_argument("--sequences", type=int, default=30, help="in each claim (default 30)")
    parser.add_argument("--in", dest="where", help="a directory on the disk to use")
    given = parser.parse_args()
    import fsqueue
    from embed.handlers import embed_claim

    ends: list[float] = []
    seen = watch_launches()
    real = embed_claim.claim_file.write

    def write(*values: Any) -> None:
        ends.append(time.perf_counter())
        real(*values)

    embed_claim.claim_file.write = write  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix="between-", dir=given.where) as name:
        folder = Path(name)
        write_random(folder / "model")
        for number in range(given.claims):
            write_proteins(folder / f"in{number}.faa", given.sequences, number)
        pool = str(folder / "pool")
        inputs = sorted(map(str, folder.glob("in*.faa")))
        options = {"model": str(folder / "model")}
        fsqueue.plan(pool, "embed", inputs, options, gpus="cpu", claim_seconds=0.01)
        fsqueue.open_pool(pool).work()
    begins = [begun for begun, _ in seen]
    pauses = [
        min(begun for begun in begins if begun > end) - end for end in ends if end < begins[-1]
    ]
    median = statistics.median(pauses)
    least, most = 1e3 * min(pauses), 1e3 * max(pauses)
    print(
        f"{len(ends)} claims, pauses of {least:.0f} to {most:.0f} ms, median {1e3 * median:.0f} ms"
    )
    print(f"that is {median / CLAIM_S:.2%} of a claim of {CLAIM_S:.0f} s")


if __name__ == "__main__":
    main()

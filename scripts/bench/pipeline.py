#!/usr/bin/env python3
"""Take pyhmmer's 2,100 proteins and pyrodigal's genome through both models with two workers.

    scripts/bench/pipeline.py

prepare, plan twice, two workers, merge, check; small models with random weights. Prints what came
out beside what the files hold. Exit status 1 if a sequence is missing, doubled or not as counted.
The two packages come with the extra `test`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.make_model import write_random
from tests.support.dnabert import write_model
from tests.support.pipeline import (
    Counted,
    genome_of_pyrodigal,
    proteins_of_pyhmmer,
    run_pipeline,
)

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def report(name: str, counted: Counted) -> None:
    """Print what a table says of itself beside what was counted in the files."""
    pairs = (f"{n} {counted.table.get(n, 0):,} of {c:,}" for n, c in counted.files.items())
    print(f"{name}: {', '.join(pairs)}; {'sound' if counted.sound else 'NOT SOUND'}")


def main() -> int:
    """Run once; return the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        folder = Path(name)
        write_random(folder / "esm2", intermediate_size=128, **SMALL)
        write_model(folder / "dnabert")
        found = run_pipeline(
            folder,
            proteins_of_pyhmmer(),
            genome_of_pyrodigal(),
            esm=folder / "esm2",
            dnabert=folder / "dnabert",
        )
    prepared = {name: f"{found.prepared[name]:,}" for name in ("contigs", "chunks", "frames")}
    print("prepared:", ", ".join(f"{count} {name}" for name, count in prepared.items()))
    report("ESM-2, frames and proteins", found.protein)
    report("DNABERT, frames", found.dna)
    print(
        f"pairs: {found.pairs:,}; without a partner: {found.unmatched[0]}, {found.unmatched[1]:,}"
    )
    print(
        f"{found.claims} claims by 2 workers in {time.monotonic() - began:.0f} s; {found.checked}"
    )
    frames, proteins = found.prepared["frames"], 2100
    right = found.pairs == frames and found.unmatched == [0, proteins]
    return int(not (right and found.protein.sound and found.dna.sound))


if __name__ == "__main__":
    sys.exit(main())

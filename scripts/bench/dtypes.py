#!/usr/bin/env python3
"""Measure how far vectors in half precision are from those in float32.

    scripts/bench/dtypes.py                                  random weights, published 8M shape
    scripts/bench/dtypes.py facebook/esm2_t12_35M_UR50D      a model that you have

Of the demonstration's proteins (DNA of random bases for a DNABERT): the least cosine, the largest
relative distance, and for how many the nearest other one is the same as in float32.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embed import Encoder
from embed.inputs.fasta import parse_records
from embed.models.published.hub import find
from scripts.make_model import write_random

PROTEINS = Path(__file__).resolve().parents[1] / "data" / "HG003684.faa"


def sequences(model: str, count: int) -> list[str]:
    """Return what the model can read."""
    if find(model).family == "dnabert":
        chance = random.Random(1)
        return ["".join(chance.choices("ACGT", k=chance.randint(150, 500))) for _ in range(count)]
    found = [record.residues.decode() for record in parse_records(PROTEINS.read_bytes())]
    return sorted(found, key=len)[:count]


def nearest(rows: np.ndarray) -> np.ndarray:
    """Return which other row has the greatest cosine with each."""
    unit = rows - rows.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.asarray((unit @ unit.T - 2 * np.eye(len(unit))).argmax(1))


def main() -> None:
    """Print a line for each precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--sequences", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dtypes-") as name:
        model = given.model or f"{name}/random-8M"
        if given.model is None:
            write_random(Path(model))
        texts = sequences(model, given.sequences)
        full = Encoder.load(model).encode(texts)
        print(f"{Path(model).name}, {len(texts)} sequences, against float32:")
        for dtype in ("float16", "bfloat16"):
            half = Encoder.load(model, dtype=dtype).encode(texts)
            lengths = np.linalg.norm(full, axis=1)
            cosine = (half * full).sum(1) / lengths / np.linalg.norm(half, axis=1)
            apart = np.linalg.norm(half - full, axis=1) / lengths
            same = (nearest(half) == nearest(full)).mean()
            print(
                f"{dtype:9}  least cosine {cosine.min():.7f}   largest relative distance "
                f"{apart.max():.1e}   same nearest neighbour {same:.0%}"
            )


if __name__ == "__main__":
    main()

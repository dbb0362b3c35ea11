#!/usr/bin/env python3
"""Measure how well the estimated cost of a claim foretells the CPU time that it takes.

    scripts/bench/cost.py             four models, three mixes; two minutes of one CPU

Every claim is planned and run by the real handler, with a model of random weights. Of all claims of
all models: the rank correlation of cost and time, and how far a claim's time is from its cost at
one speed for all; of each model by itself, the same at its own speed.

The DNABERT's vocabulary is a small one of random motifs, so its sequences have more tokens than the
0.22 a base of the published one, which the cost estimates assume.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import make_model

from embed.handlers.embed import Embed
from embed.options import OPTIONS
from fsqueue import Item, Work
from tests.support import dnabert

ESM = {
    "ESM-2 3 x 160": {"num_hidden_layers": 3, "hidden_size": 160, "intermediate_size": 640,
                      "num_attention_heads": 10},
    "ESM-2 6 x 320 (8M)": {},
    "ESM-2 8 x 480": {"num_hidden_layers": 8, "hidden_size": 480, "intermediate_size": 1920},
}  # fmt: skip
DNABERT = {
    "DNABERT 4 x 384": {"num_hidden_layers": 4, "hidden_size": 384, "intermediate_size": 1536,
                        "vocab_size": 200},
}  # fmt: skip
MIXES = {"short": (30, 80), "middle": (150, 500), "long": (700, 1400)}
TOKENS = 6000
"""About how many tokens a claim has."""


@dataclass(frozen=True, slots=True)
class Run:
    """One claim: its model and mix, what it was thought to cost, and what it took."""

    model: str
    mix: str
    cost: int
    seconds: float


def fasta(path: Path, letters: str, spread: tuple[int, int], total: int, seed: str) -> Path:
    """Write sequences of random letters, `total` of them in all, of lengths in a spread."""
    chance, lines, left, number = random.Random(seed), [], total, 0
    while left > 0:
        length = min(chance.randint(*spread), max(left, spread[0]))
        lines.append(f">s{number}\n{''.join(chance.choices(letters, k=length))}\n")
        left, number = left - length, number + 1
    path.write_text("".join(lines))
    return path


def timed(handler: Embed, item: Item, options: dict[str, Any], folder: Path) -> float:
    """Run a claim; return its CPU time."""
    work = Work(
        id=item.stem, kind=item.kind, cost=item.cost, attempt=0, payload=item.payload,
        options=options, output=folder / "out", partial=str(folder / "partial"),
        is_stopping=lambda: False, report=lambda *_: None, warn=lambda _: None,
    )  # fmt: skip
    begun = time.process_time()
    handler.run(work)
    return time.process_time() - begun


def measure(name: str, model: Path, letters: str, folder: Path) -> list[Run]:
    """Run claims of every mix with one model."""
    handler = Embed()
    options = handler.prepare({o.name: o.default for o in OPTIONS} | {"model": str(model)})
    per_token = 5 if letters == "ACGT" else 1
    runs = []
    for mix, spread in MIXES.items():
        wide = (spread[0] * per_token, spread[1] * per_token)
        for part, share in enumerate((0.5, 1.0)):
            total = int(TOKENS * per_token * share)
            path = fasta(folder / f"{mix}{part}.fa", letters, wide, total, f"{name} {mix} {part}")
            (item,) = handler.cut([handler.survey(str(path), options)], options, 10**15)
            if not runs and not part:
                timed(handler, item, options, folder)  # loads the model
            seconds = min(timed(handler, item, options, folder) for _ in range(2))
            runs.append(Run(name, mix, item.cost, seconds))
    return runs


def errors(runs: Sequence[Run]) -> list[float]:
    """Return by what factor each claim's time is off its cost at the runs' median speed."""
    speed = statistics.median(run.cost / run.seconds for run in runs)
    ratios = [run.seconds / (run.cost / speed) for run in runs]
    return [max(ratio, 1 / ratio) for ratio in ratios]


def rank_correlation(runs: Sequence[Run]) -> float:
    """Return Spearman's rho of cost and time."""

    def ranks(values: Sequence[float]) -> list[int]:
        return [sorted(values).index(value) for value in values]

    return statistics.correlation(ranks([r.cost for r in runs]), ranks([r.seconds for r in runs]))


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--claims", action="store_true", help="print every claim, too")
    given = parser.parse_args()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as place:
        for number, (name, shape) in enumerate(ESM.items()):
            make_model.write_random(Path(place, f"esm{number}"), **shape)
            runs += measure(name, Path(place, f"esm{number}"), make_model.LETTERS, Path(place))
        for number, (name, shape) in enumerate(DNABERT.items()):
            dnabert.write_model(Path(place, f"dna{number}"), **shape)
            runs += measure(name, Path(place, f"dna{number}"), "ACGT", Path(place))
    if given.claims:
        for run in runs:
            print(f"{run.model:20} {run.mix:7} {run.cost:>9,} {run.seconds:7.3f} s "
                  f"{run.cost / run.seconds:>10,.0f} a second")  # fmt: skip
    print("| claims | number | rank correlation | time off cost, median | worst |")
    print("|---|---|---|---|---|")
    groups = {
        name: [r for r in runs if r.model == name] for name in dict.fromkeys(r.model for r in runs)
    }
    for name, group in {**groups, "all together": runs}.items():
        off = errors(group)
        print(f"| {name} | {len(group)} | {rank_correlation(group):.3f} | "
              f"x {statistics.median(off):.2f} | x {max(off):.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()

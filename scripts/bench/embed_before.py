#!/usr/bin/env python3
"""Compare the engine of two checkouts on a CPU, in turns: is anything slower than before?

    scripts/bench/embed_before.py ~/fsqueue-before
    scripts/bench/embed_before.py ~/fsqueue-before --rounds 9 --tokens 20000 --shapes 8M

Each checkout runs in a process of its own, which stays; both embed the same sequences by the same
weights, one after the other, in every round the other first. The ratio is that of the user-CPU
seconds of a round, before over now, its median over the rounds: below 1 is slower. A claim goes
from FASTA to its output; DNABERT-S is the engine alone. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 0.98
"""How much slower than before anything may be."""
CHILD = """
import json, sys, time
from pathlib import Path
root, folder, tokens, shapes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sys.path.insert(0, root)
import numpy as np, torch
torch.set_num_threads(1)
import embed as _embed
assert _embed.__file__.startswith(root), _embed.__file__
import importlib.util
spec = importlib.util.spec_from_file_location("bench_embed", root + "/scripts/bench/embed.py")
bench = importlib.util.module_from_spec(spec)
sys.modules["bench_embed"] = bench
spec.loader.exec_module(bench)
from tests.support import fairesm

actions = {}
for size in shapes.split(","):
    if size == "dnabert":
        continue
    model = folder / size
    if not (model / "config.json").exists():
        fairesm.save(fairesm.random_model(bench.SIZES[size]), bench.SIZES[size], model)
    for name, texts in bench.mixes(tokens).items():
        for kind in ("float32", "bfloat16"):
            place = folder / f"{Path(root).name}-{size}-{name}-{kind}"
            place.mkdir(parents=True)
            actions[f"{size} {name} {kind}"] = bench.Ours(place, model, texts, kind).claim
if "dnabert" in shapes:
    from embed.models.dnabert import network
    from embed.models.dnabert.shape import DnabertShape

    shape = DnabertShape(4096, 768, 12, 12, 3072, 2, 1e-12)
    torch.manual_seed(4)
    weights = {n: torch.randn(s) * 0.02 + ("orm.weight" in n) for n, s in shape.tensors().items()}
    chance = np.random.default_rng(6)
    rows = [chance.integers(5, 4096, int(n)).astype(np.uint16)
            for n in sorted(chance.integers(60, 200, max(16, tokens // 1000)))[::-1]]
    for kind in ("float32", "bfloat16"):
        encoder = network.DnabertEncoder(
            shape, {n: w.to(getattr(torch, kind)) for n, w in weights.items()})
        actions[f"DNABERT-S {kind}"] = lambda encoder=encoder: encoder.hidden(rows)
print(json.dumps(list(actions)), flush=True)
for line in sys.stdin:
    begun = time.process_time()
    actions[line.strip()]()
    print(time.process_time() - begun, flush=True)
"""


class Checkout:
    """A process that runs what it is asked for with the code of one checkout."""

    def __init__(self, root: Path, folder: Path, tokens: int, shapes: str) -> None:
        command = [sys.executable, "-c", CHILD, str(root), str(folder), str(tokens), shapes]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, cwd=root,
        )  # fmt: skip
        self.names: list[str] = json.loads(self._line())

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("embed_before: a checkout's process ended; run its part by hand to see why")
        return line

    def run(self, name: str) -> float:
        """Return the CPU seconds that an action took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Print a ratio for each shape, mix and precision; exit 1 if one is below the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=20_000, help="of each mix")
    parser.add_argument("--shapes", default="8M,35M,dnabert")
    given = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    slower = []
    with tempfile.TemporaryDirectory(prefix="bench-before-") as name:
        folder = Path(name)
        sides = [Checkout(root, folder, given.tokens, given.shapes)
                 for root in (given.before.expanduser().resolve(), here)]  # fmt: skip
        for action in sides[0].names:
            for side in sides:
                side.run(action)  # the first is slower
            ratios, times = [], [0.0, 0.0]
            for turn in range(given.rounds):
                order = (0, 1) if turn % 2 else (1, 0)
                spent = {n: sides[n].run(action) for n in order}
                ratios.append(spent[0] / spent[1])
                times = [min(t or 9e9, spent[n]) for n, t in enumerate(times)]
            ratio = statistics.median(ratios)
            slower += [action] * (ratio < LIMIT)
            line = f"{action:28} before {times[0]:7.3f} s, now {times[1]:7.3f} s, "
            line += f"ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            print(line, flush=True)
        for side in sides:
            side.close()
    print(f"slower than {LIMIT:.0%} of before: {', '.join(slower) or 'nothing'}")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()

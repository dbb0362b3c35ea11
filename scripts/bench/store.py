#!/usr/bin/env python3
"""Print what it costs to search a store, beside faiss-cpu's flat index on the same vectors.

    scripts/bench/store.py --vectors 1000000 --width 320

Each in its own process, on the same shards in half precision; faiss widens them to float32,
which is what its flat index compares. Seconds per 100 queries, the best of some runs that take
turns, CPU seconds, and peak memory. Exit status 1 if the two disagree about a neighbour.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from embed.store import spaces, writer
from embed.store.compact import compact
from embed.store.keys import KEY
from embed.store.shards import Columns
from embed.store.store import Store
from tests.support.stores import OPTIONS

K, QUERIES, BATCH = 10, 100, 50_000


def fill(root: Path, count: int, width: int) -> None:
    """Make a store of random vectors that have neighbours: around one of 1,000 centres each."""
    chance = np.random.default_rng(5)
    centres = chance.standard_normal((1000, width), np.float32)
    asked = {**OPTIONS, "store": str(root), "width": width, "store_dtype": "float16"}
    view = spaces.open_space(asked)
    for start in range(0, count, BATCH):
        rows = min(BATCH, count - start)
        vectors = centres[chance.integers(1000, size=rows)]
        vectors = vectors + 0.5 * chance.standard_normal((rows, width), np.float32)
        keys = np.frombuffer(chance.bytes(rows * KEY.itemsize), KEY)
        zeros = np.zeros(rows, np.int64)
        columns = Columns(keys, zeros, zeros, ["a.faa"], [f"r{start + n}" for n in range(rows)], [])
        writer.add(view, columns, vectors)
    compact(view, grace_s=0)


def queries(width: int) -> Any:
    """Return what is asked."""
    return np.random.default_rng(6).standard_normal((QUERIES, width), np.float32)


def ours(root: Path, width: int, runs: int) -> dict[str, Any]:
    """Search the store."""
    store = Store(root)
    ids, _ = store.search(queries(width)[:1], K)
    return measured(runs, lambda: store.search(queries(width), K)[0].tolist())


def theirs(root: Path, width: int, runs: int) -> dict[str, Any]:
    """Search faiss's flat index of the same vectors."""
    import faiss

    faiss.omp_set_num_threads(threads())
    store = Store(root)
    store.view.refresh()
    index = faiss.IndexFlatIP(width)
    names: list[str] = []
    for shard in store.view.shards:
        for (block,) in shard.blocks(BATCH, ("vectors",)):
            wide = block.astype(np.float32)
            faiss.normalize_L2(wide)
            index.add(wide)
        names += [key.ljust(16, b"\0").hex() for key in shard.columns().keys]
    asked = queries(width)
    faiss.normalize_L2(asked)
    return measured(runs, lambda: [[names[n] for n in row] for row in index.search(asked, K)[1]])


def threads() -> int:
    """Return how many threads both use."""
    import torch

    return int(torch.get_num_threads())


def measured(runs: int, search: Any) -> dict[str, Any]:
    """Run it; return its best time, and the memory of this process at its peak."""
    wall, cpu = [], []
    for _ in range(runs):
        begun, spent = time.perf_counter(), time.process_time()
        found = search()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - spent)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"wall": min(wall), "cpu": min(cpu), "mib": peak / 1024, "ids": found}


def main() -> int:
    """Fill a store, search it both ways in turn, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", choices=("ours", "faiss"), help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        run = ours if given.only == "ours" else theirs
        print(json.dumps(run(given.root, given.width, given.runs)))
        return 0
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        root = Path(folder, "store")
        fill(root, given.vectors, given.width)
        best: dict[str, dict[str, Any]] = {}
        for _ in range(given.turns):
            for name in ("ours", "faiss"):
                found = _child(name, root, given)
                if name not in best or found["wall"] < best[name]["wall"]:
                    best[name] = found
    print(f"{given.vectors:,} x {given.width} float16, {QUERIES} queries, k = {K}")
    for name, found in best.items():
        print(
            f"{name:<6} {found['wall']:6.2f} s  {found['cpu']:6.2f} CPU s  {found['mib']:6,.0f} MiB"
        )
    print(f"ratio  {best['ours']['wall'] / best['faiss']['wall']:6.2f}    "
          f"{best['ours']['cpu'] / best['faiss']['cpu']:6.2f}          "
          f"{best['ours']['mib'] / best['faiss']['mib']:6.2f}")  # fmt: skip
    pairs = zip(best["ours"]["ids"], best["faiss"]["ids"], strict=True)
    different = sum(set(a) != set(b) for a, b in pairs)
    print(f"{different} of {QUERIES} queries have other neighbours")
    return int(different > QUERIES // 50)  # nearly equal ones may change places at the edge


def _child(name: str, root: Path, given: argparse.Namespace) -> dict[str, Any]:
    words = ["--only", name, "--root", str(root), "--width", str(given.width)]
    command = [sys.executable, __file__, *words, "--runs", str(given.runs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())

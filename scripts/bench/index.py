#!/usr/bin/env python3
"""Print what a query costs by brute force and by an index, so that one can see where each ends.

    scripts/bench/index.py --vectors 200000 --width 320

CPU milliseconds for one query, and for each of 100 at once, on one thread; the ten nearest. Indexes
are exported as `fsqueue embed export --index` does; `recall` is the share of the exact neighbours
that one finds. A store is compared as it is on disk, in half precision, from the page cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from embed.export.export_space import ExportRequest, export_space
from embed.store.store import Store
from scripts.bench.store import K, fill, queries


def spent_ms(run: Callable[[], Any], times: int) -> tuple[float, Any]:
    """Return the least CPU milliseconds of some runs, and the last result."""
    best, found = float("inf"), None
    for _ in range(times):
        begun = time.process_time()
        found = run()
        best = min(best, 1000 * (time.process_time() - begun))
    return best, found


def report(name: str, one: float, each: float, recall: float) -> None:
    print(f"{name:26} {one:9.2f} ms   {each:9.2f} ms of 100   recall {recall:.3f}", flush=True)


def recall_of(found: list[list[str]], exact: list[list[str]]) -> float:
    pairs = zip(found, exact, strict=True)
    return sum(len({*a} & {*b}) for a, b in pairs) / (K * len(exact))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--index", nargs="*", default=["IVF1024,Flat", "HNSW32"])
    parser.add_argument("--nprobe", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="index-") as folder:
        root = Path(folder, "store")
        fill(root, given.vectors, given.width)
        # Near to a stored vector, as a query is that has an answer.
        store, chance = Store(root), np.random.default_rng(9)
        ids, _ = store.search(queries(given.width), 1)
        near = store.get([row[0] for row in ids.tolist()])
        asked = near + 0.3 * chance.standard_normal(near.shape, np.float32)
        one, _ = spent_ms(lambda: store.search(asked[:1], K), 3)
        all_, exact = spent_ms(lambda: store.search(asked, K)[0].tolist(), 2)
        print(f"{given.vectors:,} x {given.width}")
        report("brute force", one, all_ / len(asked), 1.0)
        for kind in given.index:
            measure_faiss(root, Path(folder, "x.faiss"), kind, given.nprobe, asked, exact)


def measure_faiss(
    root: Path, target: Path, kind: str, nprobe: int, asked: Any, exact: list[list[str]]
) -> None:
    import faiss

    faiss.omp_set_num_threads(1)
    target.unlink(missing_ok=True)
    Path(f"{target}.jsonl").unlink(missing_ok=True)
    begun = time.process_time()
    export_space(
        "faiss", str(target), ExportRequest(str(root), index=kind), lambda _done, _total: None
    )
    built = time.process_time() - begun
    index = faiss.read_index(str(target))
    if hasattr(index, "nprobe"):
        index.nprobe = nprobe
        kind += f", nprobe {nprobe}"
    ids = [json.loads(line)["id"] for line in Path(f"{target}.jsonl").read_text().splitlines()]
    unit = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    one, _ = spent_ms(lambda: index.search(unit[:1], K), 5)
    all_, (_, rows) = spent_ms(lambda: index.search(unit, K), 2)
    found = [[ids[n] for n in row] for row in rows.tolist()]
    report(f"faiss {kind}", one, all_ / len(asked), recall_of(found, exact))
    print(f"{'':26} built in {built:.0f} CPU s, {target.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()

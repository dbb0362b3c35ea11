#!/usr/bin/env python3
"""Show that memory does not grow with a file: plan FASTA of two sizes, embed some claims of each.

    scripts/bench/memory.py                    5,000 MB, and 100 MB to compare with
    scripts/bench/memory.py --megabytes 500

Writes the files below --dir (deleted again), plans each for as many spools that their claims are of
one size, and runs a worker for a few claims, the file's last one among them. Prints the planner's
speed, and the peak memory (RSS) of planner and worker. Exit status 1 if a worker's peak for the
large file is above that for the small one by more than a tenth.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).resolve().parents[1]
MODEL = """
import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])
from make_model import write_random
write_random(Path(sys.argv[2]), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
             num_attention_heads=4)
"""
RECORDS = 4096
CLAIM_MB = 2.5


def write(path: Path, megabytes: int) -> int:
    """Write proteins of log-normal length under numbered ids; return how many."""
    chance = np.random.default_rng(1)
    letters = np.frombuffer(b"LAGVSERTIDPKQNFYMHWC", "u1")
    lengths = np.clip(chance.lognormal(5.6, 0.6, RECORDS), 30, 5000).astype(int)
    bodies = [chance.choice(letters, n).tobytes() + b"\n" for n in lengths.tolist()]
    count = 0
    with open(path, "wb") as file:
        while file.tell() < megabytes * 1_000_000:
            heads = (
                b">protein_%d of a synthetic file\n" % n for n in range(count, count + RECORDS)
            )
            file.write(b"".join(part for pair in zip(heads, bodies, strict=True) for part in pair))
            count += RECORDS
    return count


def run(*words: object) -> tuple[float, resource.struct_rusage]:
    """Run one fsqueue command; return its wall time in seconds and what it used."""
    began = time.monotonic()
    command = [sys.executable, "-m", "fsqueue", *map(str, words)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 5, 75):  # work remains
        sys.exit(f"failed: {' '.join(command)}")
    return time.monotonic() - began, usage


def measure(folder: Path, model: Path, megabytes: int, claims: int) -> int:
    """Print one file's figures; return the worker's peak in KiB."""
    path, pool = folder / "big.faa", folder / "pool"
    sequences = write(path, megabytes)
    spools = max(1, round(megabytes / CLAIM_MB / 8))
    seconds, planner = run("plan", "embed", pool, path, "--model", model, "--gpus", f"cpux{spools}")
    cpu = planner.ru_utime + planner.ru_stime
    waiting = len(list(pool.glob("spools/*/*.c*")))
    size = path.stat().st_size / 1e6
    print(
        f"{size:,.0f} MB, {sequences:,} sequences, {waiting:,} claims: planned in {seconds:.1f} s, "
        f"{size / seconds:,.0f} MB/s by the clock, {size / cpu:,.0f} MB per CPU-s; "
        f"peak {planner.ru_maxrss / 1024:,.0f} MiB",
        flush=True,
    )
    # The last spool that was dealt out holds claims from all over the file.
    seconds, worker = run("work", pool, "--spool", f"cpu{spools - 1}", "--max-claims", claims)
    print(
        f"    {claims} claims embedded in {seconds:.0f} s; peak of the worker "
        f"{worker.ru_maxrss / 1024:,.0f} MiB",
        flush=True,
    )
    return worker.ru_maxrss


def main() -> int:
    """Measure a small file and the large one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=5000)
    parser.add_argument("--claims", type=int, default=2)
    parser.add_argument("--dir", help="a place with room for the file; default: the system's")
    given = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory(prefix="memory-", dir=given.dir) as name:
        model = Path(name, "model")
        # In its own process: a child's peak begins at what its parent has, and torch is large.
        subprocess.run([sys.executable, "-c", MODEL, SCRIPTS, model], check=True)
        for megabytes in (min(100, given.megabytes), given.megabytes):
            folder = Path(name, f"{megabytes}")
            folder.mkdir(exist_ok=True)
            peaks.append(measure(folder, model, megabytes, given.claims))
    return int(peaks[1] > 1.1 * peaks[0])


if __name__ == "__main__":
    sys.exit(main())

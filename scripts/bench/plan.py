"""Measure how fast planning reads FASTA, against `grep -c '>'` and against hashing alone.

    python scripts/bench/plan.py [MEGABYTES]        default 512

Every measurement is CPU time (user + system), the best of five, the competitors taking turns, so
that other work on the machine disturbs them alike. Prints MB/s and ratios; and the peak memory.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embed.scan import scan

DATA = Path(__file__).resolve().parents[1] / "data"
ROUNDS = 5


def cpu_s() -> float:
    """Return the CPU time of this process and of its children that ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def planned(path: str) -> int:
    return scan(path, lambda lengths: np.minimum(lengths, 1022) + 2).total("sequences")


def grepped(path: str) -> int:
    return int(subprocess.run(["grep", "-c", ">", path], capture_output=True, check=True).stdout)


def hashed(path: str) -> int:
    with open(path, "rb") as file:
        return len(hashlib.file_digest(file, "sha256").digest())


def make(path: str, megabytes: int, *, line: int, header: str | None) -> None:
    """Repeat the demonstration's proteins, on lines of another length, under other headers."""
    proteins = (DATA / "HG003685.faa").read_text().split(">")[1:]
    records = []
    for number, protein in enumerate(proteins):
        head, _, body = protein.partition("\n")
        residues = body.replace("\n", "")
        lines = [residues[at : at + line] for at in range(0, len(residues), line)]
        records.append("\n".join([">" + (header or head).format(number), *lines, ""]))
    data = "".join(records).encode()
    with open(path, "wb") as file:
        for _ in range(max(1, megabytes * 1_000_000 // len(data))):
            file.write(data)


def race(path: str, runs: dict[str, Callable[[str], int]]) -> None:
    """Print the best of several rounds for each competitor."""
    size, best = os.path.getsize(path), dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = cpu_s()
            run(path)
            best[name] = min(best[name], cpu_s() - began)
    for name, seconds in best.items():
        ratio = best["plan"] / seconds
        print(
            f"    {name:8} {size / seconds / 1e6:8,.0f} MB/s   plan takes {ratio:5.1f} x its time"
        )


def main() -> None:
    """Measure each kind of file."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    kinds = {
        "as Prodigal writes it (60 columns, 120-byte headers)": (60, None),
        "as UniProt writes it (60 columns, short headers)": (60, "sp|P{0:05}|NAME some protein"),
        "one line a sequence": (1 << 30, "id{0}"),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.faa"
        for name, (line, header) in kinds.items():
            make(path, megabytes, line=line, header=header)
            assert planned(path) == grepped(path)
            print(f"{name}, {os.path.getsize(path) / 1e6:,.0f} MB")
            race(path, {"plan": planned, "grep -c": grepped, "sha256": hashed})
        make(path, megabytes // 8, line=60, header="id{0}")
        packed = f"{path}.gz"
        Path(packed).write_bytes(gzip.compress(Path(path).read_bytes(), 6))
        print(f"gzip, {os.path.getsize(packed) / 1e6:,.0f} MB (MB/s of packed bytes)")
        race(packed, {"plan": planned})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()

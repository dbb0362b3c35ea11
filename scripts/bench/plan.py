#!/usr/bin/env python3
"""Measure how fast planning reads FASTA, beside `grep -c '>'`, hashing alone, and other readers.

    scripts/bench/plan.py                        512 MB of each kind of file
    scripts/bench/plan.py 64 --readers           the readers of peers.txt, too, in --venv

Every measurement is CPU time (user + system), the best of --rounds, the competitors taking turns,
so that other work on the machine disturbs them alike. Only planning checks, counts and hashes; a
reader is asked for the length of every sequence. Prints MB/s and ratios; and the peak memory.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embed.inputs.fasta_scan import Scan, scan
from scripts.bench.claims import ROOT, make_venv
from scripts.bench.readers import READERS
from scripts.bench.tables import parser, place, table, write_json

DATA = Path(__file__).resolve().parents[1] / "data"
KINDS = {
    "as Prodigal writes it (60 columns, 120-byte headers)": (60, None),
    "as UniProt writes it (60 columns, short headers)": (60, "sp|P{0:05}|NAME some protein"),
    "one line a sequence": (1 << 30, "id{0}"),
}

Run = Callable[[str], float]
"""Reads a file; returns the CPU seconds that took."""


def cpu_s() -> float:
    """Return the CPU time of this process and of its children that ended."""
    usages = (resource.getrusage(whom) for whom in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(act: Callable[[str], object], path: str) -> float:
    begun = cpu_s()
    act(path)
    return cpu_s() - begun


def planned(path: str) -> Scan:
    return scan(path, lambda lengths: np.minimum(lengths, 1022) + 2)


def grepped(path: str) -> int:
    program = "zgrep" if path.endswith(".gz") else "grep"
    return int(subprocess.run([program, "-c", ">", path], capture_output=True, check=True).stdout)


def hashed(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def read(reader: str, python: Path, path: str) -> float:
    """Let another reader read; fail if it does not find every sequence."""
    argv = [python, Path(__file__).with_name("readers.py"), reader, path]
    said = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    assert said["sequences"] == grepped(path), (reader, said)
    return float(said["cpu"])


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


def race(kind: str, path: str, runs: dict[str, Run], rounds: int) -> list[dict[str, object]]:
    """Print the best of several rounds for each competitor, and return them."""
    size, best = os.path.getsize(path), dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], run(path))
    print(f"\n{kind}, {size / 1e6:,.0f} MB\n")
    speeds = {name: size / seconds / 1e6 for name, seconds in best.items()}
    rows = [(n, f"{s:,.0f}", f"{s / speeds['plan']:.2f}") for n, s in speeds.items()]
    table(["reader", "MB/s", "plan's time is x"], rows)
    return [{"file": kind, "reader": name, "mb_per_s": speed} for name, speed in speeds.items()]


def competitors(given: argparse.Namespace) -> dict[str, Run]:
    """Return the contenders by name."""
    runs: dict[str, Run] = {
        "plan": partial(timed, planned),
        "grep -c": partial(timed, grepped),
        "sha256": partial(timed, hashed),
    }
    if given.readers:
        make_venv(given.venv)
        python = given.venv / "bin" / "python"
        runs |= {name: partial(read, name, python) for name in READERS}
    return runs


def main() -> None:
    """Measure each kind of file."""
    options = parser(__doc__)
    options.add_argument("megabytes", type=int, nargs="?", default=512)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--readers", action="store_true", help="measure other readers, too")
    options.add_argument("--venv", type=Path, default=ROOT / ".venv-peers")
    given = options.parse_args()
    folder, runs, figures = place(given), competitors(given), []
    path, packed = str(folder / "x.faa"), str(folder / "x.faa.gz")
    for kind, (line, header) in KINDS.items():
        make(path, given.megabytes, line=line, header=header)
        assert planned(path).total("sequences") == grepped(path)
        figures += race(kind, path, runs, given.rounds)
    make(path, max(1, given.megabytes // 8), line=60, header="id{0}")
    Path(packed).write_bytes(gzip.compress(Path(path).read_bytes(), 6))
    unpacking = {name: run for name, run in runs.items() if name not in ("sha256", "biopython")}
    figures += race("gzip (packed bytes)", packed, unpacking, given.rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process: {peak:,.0f} MiB")
    write_json(given, "plan", {"peak_mib": peak, "readers": figures})
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Take real proteins and a real genome through prepare, plan, two workers and merge, and count.

The expected counts are taken from the files by independent code in this module.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embed import read

WORKERS = 2


@dataclass(frozen=True, slots=True)
class Counted:
    """The counts of one model's merged table, and those of the FASTA files."""

    table: dict[str, int]
    files: dict[str, int]
    ids_agree: bool
    lengths_agree: bool
    finite: bool
    zeros: int
    """Rows that are zeros; only an empty sequence may have one."""

    @property
    def sound(self) -> bool:
        same = all(self.table.get(name, 0) == count for name, count in self.files.items())
        whole = self.ids_agree and self.lengths_agree and self.finite
        return same and whole and self.zeros == self.files["empty"]


@dataclass(frozen=True, slots=True)
class Result:
    """The results of a whole run."""

    prepared: dict[str, Any]
    claims: int
    protein: Counted
    dna: Counted
    pairs: int
    unmatched: list[int]
    checked: str


def proteins_of_pyhmmer() -> Path:
    """The 2,100 real proteins that the pyhmmer wheel ships."""
    import pyhmmer

    folder = Path(pyhmmer.__file__).parent / "tests" / "data" / "seqs"
    return folder / "938293.PRJEB85.HG003687.faa"


def genome_of_pyrodigal(part: str = "") -> Path:
    """The complete genome that the pyrodigal wheel ships, or its first 100 kb ("_100kb")."""
    import pyrodigal

    folder = Path(pyrodigal.__file__).parent / "tests" / "data"
    return folder / f"GCF_001457455.1_NCTC11397_genomic{part}.fna.gz"


def run_pipeline(folder: Path, proteins: Path, genome: Path, *, esm: Path, dnabert: Path) -> Result:
    """Do what a user of both models does; every command must succeed."""
    contigs = folder / "contigs.fna.gz"
    contigs.write_bytes(genome.read_bytes())
    prepared = json.loads(command("embed", "prepare", contigs, "-o", folder, "--json"))
    bases, residues = Path(prepared["nucleotides"]), Path(prepared["proteins"])
    pool = folder / "pool"
    command("plan", "embed", pool, residues, proteins, "--model", esm, "--gpus", "cpux2")
    command("plan", "embed", pool, bases, "--model", dnabert)
    workers = [begin("work", pool, "--spool", f"cpu{n}", "--others-ok") for n in range(WORKERS)]
    assert [worker.wait() for worker in workers] == [0] * WORKERS
    tables = {}
    for model in (esm, dnabert):
        out = folder / f"{model.name}.safetensors"
        command("embed", "merge", pool, out, "--model", model.name)
        tables[model] = out
    pairs = json.loads(command("embed", "merge", pool, folder / "pairs.safetensors", "--json"))
    return Result(
        prepared,
        len(list((pool / "done").iterdir())),
        counted(
            tables[esm], [residues, proteins], most=1022, letters=b"LAGVSERTIDPKQNFYMHWCXBUZO.-"
        ),
        counted(tables[dnabert], [bases], most=10_000, letters=b"ACGT"),
        pairs["rows"],
        pairs["unmatched"],
        command("check", pool).strip(),
    )


def counted(out: Path, files: list[Path], *, most: int, letters: bytes) -> Counted:
    """Compare a merged table with its files, truncating long proteins, windowing long DNA."""
    table = read(out)
    records = [record for path in files for record in fasta(path)]
    ids = [id for id, _ in records]
    lengths = np.array([len(body) for _, body in records])
    read_letters = [body if most > 1022 else body[:most] for _, body in records]
    long = "windowed" if most > 1022 else "truncated"
    return Counted(
        table.metadata["counts"],
        {
            "sequences": len(records),
            "residues": sum(map(len, read_letters)),
            long: int((lengths > most).sum()),
            "unknown_residues": sum(
                len(body.upper().translate(None, letters)) for body in read_letters
            ),
            "empty": int((lengths == 0).sum()),
        },
        table.ids == ids,
        table.columns["lengths"].tolist() == lengths.tolist(),
        bool(np.isfinite(table.rows).all()),
        int((~table.rows.any(axis=1)).sum()),
    )


def fasta(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield ids and letters, without the stars that end a protein."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    for record in text.split(b">")[1:]:
        head, *lines = record.splitlines()
        yield head.split()[0].decode(), b"".join(lines).rstrip(b"*")


def begin(*words: object) -> subprocess.Popen[bytes]:
    """Start one `fsqueue WORD...` without a GPU."""
    line = [sys.executable, "-m", "fsqueue", *map(str, words)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)


def command(*words: object) -> str:
    """Run one `fsqueue WORD...` that must succeed, and return what it printed."""
    line = [sys.executable, "-m", "fsqueue", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout

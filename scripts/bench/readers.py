"""What `plan.py` runs against the planner: readers of FASTA from the package index.

    readers.py READER FILE

Prints, as JSON, how many sequences and residues there are, and the CPU seconds that took. Runs in
the environment of peers.txt. Each is used as its manual advises, for the length of every sequence.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator


def biopython(path: str) -> Iterator[int]:
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    with open(path) as file:
        for _, sequence in SimpleFastaParser(file):
            yield len(sequence)


def dnaio(path: str) -> Iterator[int]:
    import dnaio

    with dnaio.open(path, open_threads=0) as reader:
        for record in reader:
            yield len(record.sequence)


def needletail(path: str) -> Iterator[int]:
    from needletail import parse_fastx_file

    for record in parse_fastx_file(path):
        yield len(record.seq)


def pyfastx(path: str) -> Iterator[int]:
    import pyfastx

    for _, sequence in pyfastx.Fasta(path, build_index=False):
        yield len(sequence)


def pysam(path: str) -> Iterator[int]:
    import pysam

    with pysam.FastxFile(path) as file:
        for record in file:
            yield len(record.sequence)


READERS: dict[str, Callable[[str], Iterator[int]]] = {
    reader.__name__: reader for reader in (biopython, dnaio, needletail, pyfastx, pysam)
}


def main() -> None:
    """Read one file once."""
    name, path = sys.argv[1:]
    next(READERS[name](path), None)  # imports what there is to import
    begun = time.process_time()
    sequences = residues = 0
    for length in READERS[name](path):
        sequences += 1
        residues += length
    cpu = time.process_time() - begun
    print(json.dumps({"sequences": sequences, "residues": residues, "cpu": cpu}))


if __name__ == "__main__":
    main()

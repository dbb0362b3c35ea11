#!/usr/bin/env python3
"""Count what all claims of one gzip file decompress together, and what that costs.

    scripts/bench/divided_gzip.py                    300 MB, 40 claims; about a minute
    scripts/bench/divided_gzip.py --megabytes 1000

The proteins are random. Each claim begins at the restart point before its first sequence; these
are 4 MiB apart in any file, so that claims of a small one share what they decompress.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embed.inputs.claims import draft_claims, segments_of
from embed.inputs.fasta_scan import scan

CLAIMS = 40


def write(path: Path, size: int) -> None:
    """Write a gzip file of about so many bytes."""
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    with gzip.open(path, "wb", 1) as file:
        number = 0
        while path.stat().st_size < size:
            for length in rng.integers(50, 800, 20_000):
                residues = letters[rng.integers(0, 20, length)].tobytes()
                file.write(b">s%d\n%s\n" % (number, residues))
                number += 1
            file.flush()


def timed(path: Path) -> Iterator[tuple[str, object]]:
    """Yield what is measured, and its value."""
    begun = time.process_time()
    with gzip.open(path) as file:
        whole = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
    yield "MB, packed and not", (path.stat().st_size / 1e6, whole / 1e6)
    yield "one pass, CPU s", time.process_time() - begun
    begun = time.process_time()
    found = scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2)
    yield "counting, CPU s", time.process_time() - begun
    begun = time.process_time()
    cost_max = int(found.total("cost")) // CLAIMS
    payloads = [draft.payload() for draft in draft_claims([found], cost_max)]
    yield "restart points, CPU s", time.process_time() - begun
    yield "claims, and the largest claim's file in bytes", (
        len(payloads), max(len(json.dumps(each)) for each in payloads),
    )  # fmt: skip
    begun, decompressed, read = time.process_time(), 0, 0
    for payload in payloads:
        (segment,) = segments_of(payload)
        stop = segment.start + sum(segment.lengths)
        decompressed += stop - (segment.restart.position if segment.restart else 0)
        read += sum(map(len, segment.blocks()))
    assert read == whole, "together they have read the file once"
    yield "decompressed by all claims, by the file", decompressed / whole
    yield "all claims, CPU s", time.process_time() - begun


def main() -> None:
    """Make a file, and print what is measured."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=300)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.faa.gz")
        write(path, options.parse_args().megabytes * 1_000_000)
        for what, value in timed(path):
            numbers = value if isinstance(value, tuple) else (value,)
            print(f"{what}: {', '.join(f'{number:,.4g}' for number in numbers)}")


if __name__ == "__main__":
    main()

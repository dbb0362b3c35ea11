#!/usr/bin/env python3
"""Kill -9 a worker in the middle of a long claim, and print what the next one repeats.

    scripts/bench/killed.py                  a claim of some minutes, saved every 60 s
    scripts/bench/killed.py --tokens 100000 --checkpoint-seconds 5

ESM-2 in the shape of the published 8M model, random weights; proteins of the demonstration, again
and again. Exit status 1 if more than a checkpoint interval (and a batch) is repeated, or if a byte
of the output is not that of an undisturbed worker.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.make_model import write_random
from tests.support.killed_worker import kill_and_resume

PROTEINS = Path(__file__).resolve().parents[1] / "data" / "HG003685.faa"
RESIDUES = 148_143


def main() -> int:
    """Measure once; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--checkpoint-seconds", type=int, default=60)
    parser.add_argument("--checkpoints", type=int, default=2, help="when to kill")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="killed-") as name:
        folder = Path(name)
        write_random(folder / "model")
        fasta = folder / "long.faa"
        fasta.write_bytes(PROTEINS.read_bytes() * max(1, given.tokens // RESIDUES))
        options = {"checkpoint-seconds": given.checkpoint_seconds}
        report = kill_and_resume(folder, folder / "model", fasta, options, given.checkpoints)
    tokens = sum(batch.tokens for batch in report.whole)
    took = report.whole[-1].ended - report.whole[0].began
    print(f"claim: {tokens:,} tokens, {len(report.whole)} batches, {took:.0f} s undisturbed")
    print(f"killed after {report.checkpoints} checkpoints and {len(report.first)} batches")
    print(
        f"repeated: {len(report.repeated)} batches, {report.repeated_s:.1f} s of work, of at most "
        f"{given.checkpoint_seconds} s and a batch ({report.longest_s:.1f} s)"
    )
    print(f"output: {'byte for byte' if report.identical else 'NOT'} that of an undisturbed run")
    late = report.repeated_s > given.checkpoint_seconds + report.longest_s
    return int(late or not report.identical)


if __name__ == "__main__":
    sys.exit(main())

"""SIGKILL in the middle of a long claim costs one checkpoint interval, and changes no byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.killed_worker import kill_and_resume


@pytest.mark.slow
def test_the_next_worker_repeats_no_more_than_a_checkpoint_interval(
    tmp_path: Path, tiny_model: Path, proteins: list[Path]
) -> None:
    fasta = tmp_path / "long.faa"
    fasta.write_bytes(proteins[0].read_bytes() * 2)
    options = {"checkpoint-seconds": 1, "tokens-per-batch": 512}
    report = kill_and_resume(tmp_path, tiny_model, fasta, options, checkpoints=2)
    assert report.checkpoints >= 2 and report.identical
    every = [batch.key for batch in report.whole]
    assert len(every) == len(set(every)) > 100
    assert {b.key for b in report.first} | {b.key for b in report.second} == set(every)
    # Batches are saved when one ends a second or more after the last checkpoint.
    assert report.repeated_s <= 1 + 2 * report.longest_s
    assert len(report.second) <= len(every) - (len(report.first) - len(report.repeated))

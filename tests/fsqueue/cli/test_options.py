"""Durations as people and SLURM write them; pipes whose reader leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fsqueue.cli.options import Duration
from tests.support.pools import make_pool
from tests.support.processes import environment


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("90", 90),
        ("45s", 45),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("04:00:00", 14_400),
        ("1-00:00:00", 86_400),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("30:00", 1800),
        ("0:00:10", 10),
    ],
)
def test_a_duration_is_seconds_or_units_or_slurms_own_form(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "x", "1-", "-5:00", "1m2", "04:00:00s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["failed"], ["check"]])
def test_a_command_whose_reader_has_left_ends_as_by_sigpipe(
    tmp_path: Path, words: list[str]
) -> None:
    pool = make_pool(tmp_path / "pool", *(f"i{n}.1" for n in range(50)))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fsqueue", words[0], pool.root, *words[1:]]
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment()
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")

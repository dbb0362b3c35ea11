"""Outputs and checkpoints of embed: whole, or refused by one typed error."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from embed.outputs import claim_file
from embed.outputs.table import JoinedTable, OutputFile, Part
from tests.fuzz.sandbox import directory, pick, put, typed_errors_only


def _table(data: bytes) -> None:
    path = str(directory() / "output.safetensors")
    put(path, data)
    output = OutputFile(path)
    assert output.count >= 0 and output.width >= 0
    output.ids()
    if not output.ragged:
        joined = JoinedTable([Part(path, 0, output.count, output.count)])
        rows = [block.rows for block in joined.blocks()]
        assert sum(len(each) for each in rows) == output.count


def _checkpoint(data: bytes) -> None:
    try:
        found = claim_file.decode_checkpoint(data)
    except ValueError:
        return  # refused, as promised
    assert all(isinstance(number, int) for number in found)
    again = claim_file.decode_checkpoint(claim_file.encode_checkpoint(found))
    assert {number: rows.tobytes() for number, rows in again.items()} == {
        number: rows.tobytes() for number, rows in found.items()
    }


@cache
def good_output() -> bytes:
    """Return an output of two sequences."""
    path = directory() / "good.safetensors"
    rows = np.arange(4, dtype=np.float32).reshape(2, 2)
    columns = {"lengths": np.array([3, 4], "<i8"), "flags": np.array([0, 1], "u1")}
    claim_file.write(
        path, ["one", "two"], rows, {"model": "m", "counts": {"sequences": 2}}, columns
    )
    return path.read_bytes()


READERS: tuple[Callable[[bytes], None], ...] = (_table, _checkpoint)
SEEDS = (
    b"\x00" + good_output(),
    b"\x01"
    + claim_file.encode_checkpoint(
        {3: np.ones((1, 2), np.float32), 12: np.zeros((0, 2), np.float32)}
    ),
    b"\x01\x80\x04\x95cos\nsystem\n(S'id'\ntR.",
)


def run(data: bytes) -> None:
    """Let the first byte choose the reader of the rest."""
    chosen, data = pick(data, len(READERS))
    with typed_errors_only():
        READERS[chosen](data)

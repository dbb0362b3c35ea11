"""The FASTA scanner against a ten-line reader, for any bytes cut at any place."""

from __future__ import annotations

import hashlib

import numpy as np

from embed.inputs.fasta import parse_records
from embed.inputs.fasta_scan import scan
from fsqueue import BadInput
from tests.fuzz.sandbox import directory, put
from tests.support.fasta import naive

SEEDS = (
    b"\x05\x01>a desc\nMKV\nLA*\n>b\nACDE\n",
    b"\x10\x09\n\r\n>a\r\nmkv-.\r\n\r\n>\n>c*\n**\n",
    b"\x01\x00>\xc3\xa9 \xff > x\nM K V",
    b"\x03\x02;comment\n>a\nM",
    b"\x20\x01>a\rMKV\r>b\r",
    b"\x20\x01\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    b"\x20\x01>a\nM\x00K\n",
    b"\x08\x01\xef\xbb\xbf>a\nM\n",
)


def run(data: bytes) -> None:
    """Let the first two bytes be the sizes of chunk and grain, and scan the rest."""
    chunk, grain, data = 1 + (data[0] if data else 0), 1 + (data[1] if data[1:] else 0), data[2:]
    path = str(directory() / "input.fa")
    put(path, data)
    try:
        found = scan(
            path, lambda lengths: np.minimum(lengths, 10) + 2, piece_bytes=chunk, block_bytes=grain
        )
    except BadInput as error:
        assert str(error).startswith(path) and "\n" not in str(error)
        assert is_refusable(data), error
        return
    if data.startswith(b"\x1f\x8b"):
        return  # compressed: `test_fasta_scan.py` has those
    assert b"\0" not in data
    expected = naive(data)
    starts = found.blocks[["start", "length"]].tolist()
    blocks = [data[start : start + length] for start, length in starts]
    assert b"".join(blocks) == data
    assert [(r.id, r.residues) for block in blocks for r in parse_records(block)] == expected
    for block, row in zip(blocks, found.blocks, strict=True):
        lengths = [len(residues) for _, residues in naive(block)]
        assert row["sequences"] == len(lengths) and row["residues"] == sum(lengths)
        assert row["longest"] == max(lengths, default=0)
        assert row["digest"].tobytes() == hashlib.sha256(block).digest()
    assert found.empty == sum(not residues for _, residues in expected)


def is_refusable(data: bytes) -> bool:
    """Return whether these bytes may be refused as FASTA."""
    known = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", b"PK\x03\x04", b"\xef\xbb\xbf")
    if data.startswith(known) or b"\0" in data:
        return True
    if b"\n" not in data and b"\r" in data[:-1]:
        return True
    try:
        naive(data)
    except ValueError:
        return True
    return False

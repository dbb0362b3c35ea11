"""A claim reads exactly the bytes that were planned, or reports that they changed."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from embed.inputs.fasta_scan import scan
from embed.inputs.segments import Segment
from fsqueue import ClaimFailed, ClaimImpossible

DATA = b"".join(b">id%d\n%s\n" % (n, b"MKVLAAG" * (n % 30 + 1)) for n in range(400))


@pytest.fixture(params=["plain", "gzip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "x.faa"
    path.write_bytes(gzip.compress(DATA) if request.param == "gzip" else DATA)
    return path


def is_gzip(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x1f\x8b")


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data) if is_gzip(path) else data)


def middle(path: Path) -> Segment:
    blocks = scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2, block_bytes=1000).blocks
    return Segment.of(str(path), blocks[3:9])


def test_a_segment_is_read_again_to_the_byte(path: Path) -> None:
    segment = middle(path)
    data = b"".join(segment.blocks())
    assert data == DATA[segment.start : segment.start + sum(segment.lengths)]
    assert data.startswith(b">id") and data.endswith(b"\n")


def test_a_segment_survives_json_unchanged(path: Path) -> None:
    assert Segment.decode(middle(path).encode()) == middle(path)


def test_a_touched_file_is_the_same_input(path: Path) -> None:
    segment = middle(path)
    os.utime(path, (1, 1))
    segment.verify()


def test_a_change_elsewhere_in_the_file_does_not_matter(path: Path) -> None:
    segment = middle(path)
    rewrite(path, DATA[:-8] + b"WWWWWWW\n")
    segment.verify()


@pytest.mark.parametrize(
    "changed",
    [
        DATA.replace(b"id50\n", b"id99\n"),
        DATA[:100] + b"W" + DATA[100:],
        DATA[:4000],
        DATA.replace(b"\n", b"\r\n"),
        b"",
    ],
    ids=["an id", "a residue more before it", "cut short", "other line ends", "emptied"],
)
def test_changed_bytes_are_detected(path: Path, changed: bytes) -> None:
    segment = middle(path)
    rewrite(path, changed)
    with pytest.raises(ClaimImpossible, match="changed after it was planned.*fsqueue plan embed"):
        segment.verify()


def test_a_file_that_was_compressed_or_decompressed_is_the_same_input(path: Path) -> None:
    segment = middle(path)
    path.write_bytes(DATA if is_gzip(path) else gzip.compress(DATA))
    segment.verify()


def test_a_gzip_file_that_was_truncated_is_detected(path: Path) -> None:
    segment = middle(path)
    path.write_bytes(gzip.compress(DATA)[:200])
    with pytest.raises(ClaimImpossible, match="changed"):
        segment.verify()


def test_a_missing_file_may_be_somewhere_else(path: Path) -> None:
    segment = middle(path)
    path.unlink()
    with pytest.raises(ClaimFailed, match="No such file") as failed:
        segment.verify()
    assert not isinstance(failed.value, ClaimImpossible)

"""Claims of a gzip file begin in its middle, and read the planned bytes whatever happened to it."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.inputs import gzip_index
from embed.inputs.claims import draft_claims, segments_of, verified_segments
from embed.inputs.fasta_scan import scan
from embed.inputs.gzip_index import Restart
from embed.inputs.segments import Segment
from fsqueue import ClaimImpossible

pytest.importorskip("indexed_gzip")

CLAIMS = 40


@pytest.fixture(scope="module")
def data() -> bytes:
    chance = random.Random(2)
    letters = (chance.choices("ACDEFGHIKLMNPQRSTVWY", k=400) for _ in range(36_000))
    return b"".join(b">s%d\n%s\n" % (n, "".join(each).encode()) for n, each in enumerate(letters))


@pytest.fixture
def path(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A file of 300 MB with points every 4 MiB, in small.
    monkeypatch.setattr(gzip_index, "SPACING", len(data) // 200)
    path = tmp_path / "x.faa.gz"
    path.write_bytes(gzip.compress(data, 6))
    return path


def planned(path: Path) -> list[dict[str, Any]]:
    found = scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2)
    drafts = draft_claims([found], int(found.total("cost")) // CLAIMS)
    return [draft.payload() for draft in drafts]


def only(payload: dict[str, Any]) -> Segment:
    (segment,) = segments_of(payload)
    assert isinstance(segment, Segment)
    return segment


def test_forty_claims_together_decompress_the_file_little_more_than_once(
    path: Path, data: bytes
) -> None:
    payloads = planned(path)
    assert len(payloads) >= CLAIMS
    decompressed = 0
    for payload in payloads:
        segment = only(payload)
        stop = segment.start + sum(segment.lengths)
        decompressed += stop - (segment.restart.position if segment.restart else 0)
        assert b"".join(segment.blocks()) == data[segment.start : stop]
    assert decompressed <= 1.2 * len(data)


def test_what_lies_before_the_point_is_not_read(path: Path, data: bytes) -> None:
    segment = only(planned(path)[-1])
    packed = bytearray(path.read_bytes())
    packed[100 : len(packed) // 2] = bytes(len(packed) // 2 - 100)
    path.write_bytes(packed)
    assert b"".join(segment.blocks()) == data[segment.start :]


def test_a_claim_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = Restart.open
    monkeypatch.setattr(Restart, "open", lambda self, path: opened.append(path) or real(self, path))
    (segment,) = verified_segments(planned(path)[-1])
    assert len(list(segment.records())) == segment.sequences
    assert opened == [str(path)]


def test_the_same_content_compressed_anew_is_the_same_input(path: Path, data: bytes) -> None:
    segment = only(planned(path)[-1])
    half = len(data) // 2
    path.write_bytes(gzip.compress(data[:half], 1) + gzip.compress(data[half:], 9))
    assert b"".join(segment.blocks()) == data[segment.start :]


def test_other_content_is_noticed(path: Path, data: bytes) -> None:
    segment = only(planned(path)[-1])
    path.write_bytes(gzip.compress(data[:-3] + b"WW\n", 6))
    with pytest.raises(ClaimImpossible, match="changed after it was planned"):
        list(segment.blocks())


def test_without_the_library_everything_works_as_before(
    path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_points = only(planned(path)[-1])
    assert with_points.restart is not None
    monkeypatch.setattr(gzip_index, "library", lambda: None)
    without = only(planned(path)[-1])
    assert without.restart is None and without == with_points, "the claims are the same"
    for segment in (without, with_points):
        assert b"".join(segment.blocks()) == data[segment.start :]


def test_a_point_survives_json_and_is_small(path: Path) -> None:
    payload = planned(path)[-1]
    text = payload["segments"][0]["restart"]
    assert Restart.decode(text) == only(payload).restart
    assert len(text) < 45_000
    with pytest.raises(ValueError, match="restart point"):
        Restart.decode(text[:100])


def test_small_files_and_plain_ones_have_no_points(tmp_path: Path, data: bytes) -> None:
    plain = tmp_path / "x.faa"
    plain.write_bytes(data)
    assert all(only(payload).restart is None for payload in planned(plain))

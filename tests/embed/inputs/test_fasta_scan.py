"""The scanner against a naive reader that shares no code with it."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embed.inputs.fasta import parse_records
from embed.inputs.fasta_scan import Scan, scan
from fsqueue import BadInput
from tests.support.fasta import naive


def scanned(data: bytes, **options: int) -> Scan:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return scan(file.name, lambda lengths: np.minimum(lengths, 10) + 2, **options)


def blocks_of(found: Scan, data: bytes) -> list[bytes]:
    return [data[start : start + n] for start, n in found.blocks[["start", "length"]].tolist()]


PIECES = st.sampled_from(
    [b"\n", b"\n", b"\r\n", b">", b"\n>", b"\n>id desc > x", b"\r\n>i*", b"*", b"**", b"MKV", b"x"]
    + [b" ", b"\t", b"-", b".", b"\x1f", b"\x7f", b"\n>\xc3\xa9\xff *", b"*\n*", b"ACDEFGHIKL" * 3]
)
FILES = st.builds(
    lambda blank, pieces: b"".join(blank) + b">a" + b"".join(pieces),
    st.lists(st.sampled_from([b"\n", b"\r\n", b" \n"]), max_size=3),
    st.lists(PIECES, max_size=40),
).filter(lambda data: b"\n" in data or b"\r" not in data)


@settings(max_examples=400)
@given(data=FILES, piece=st.integers(1, 70), size=st.integers(1, 70))
@example(data=b">a\nMK*\n*\n >b\n", piece=1, size=1)
@example(data=b">a\nMK\r\n", piece=3, size=5)
@example(data=b">a*\n*\n>b*\nM*", piece=4, size=1)
def test_blocks_count_what_a_naive_reader_counts(data: bytes, piece: int, size: int) -> None:
    expected = naive(data)
    found = scanned(data, piece_bytes=piece, block_bytes=size)
    blocks = blocks_of(found, data)
    assert b"".join(blocks) == data
    assert [(r.id, r.residues) for block in blocks for r in parse_records(block)] == expected
    for block, row in zip(blocks, found.blocks, strict=True):
        lengths = [len(residues) for _, residues in naive(block)]
        assert row["sequences"] == len(lengths)
        assert row["residues"] == sum(lengths)
        assert row["longest"] == max(lengths, default=0)
        assert row["cost"] == sum(min(length, 10) + 2 for length in lengths)
        assert row["digest"].tobytes() == hashlib.sha256(block).digest()
    assert found.empty == sum(not residues for _, residues in expected)
    assert all(len(block) >= size for block in blocks[:-1])


@settings(max_examples=100)
@given(junk=st.sampled_from([b"M", b"*", b" x", b"\n;", b"1"]), data=FILES, piece=st.integers(1, 9))
def test_text_before_the_first_record_is_refused(junk: bytes, data: bytes, piece: int) -> None:
    with pytest.raises(ValueError):
        naive(junk + b"\n" + data)
    with pytest.raises(BadInput, match="not FASTA"):
        scanned(junk + b"\n" + data, piece_bytes=piece)


@settings(max_examples=60)
@given(data=FILES, piece=st.integers(1, 70), size=st.integers(1, 70))
def test_a_gzip_file_has_the_blocks_of_its_content(data: bytes, piece: int, size: int) -> None:
    plain = scanned(data, piece_bytes=piece, block_bytes=size)
    half = len(data) // 2  # two members, as bgzip and `cat a.gz b.gz` make them
    packed = scanned(
        gzip.compress(data[:half]) + gzip.compress(data[half:]), piece_bytes=99, block_bytes=size
    )
    assert np.array_equal(plain.blocks, packed.blocks)
    assert plain.digest == packed.digest


def test_real_proteins_are_counted_as_their_description_says(proteins: list[Path]) -> None:
    expected = {
        "HG003685.faa": (452, 148_143, 2626),
        "HG003691.faa.gz": (110, 38_618, 1334),
        "HG003684.faa": (73, 22_709, 3484),
        "HG003688.faa": (21, 8_555, 1122),
        "HG003689.faa": (31, 7_889, 603),
    }
    for path in proteins:
        found = scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2)
        longest = int(found.blocks["longest"].max())
        counts = (found.total("sequences"), found.total("residues"), longest)
        assert counts == expected[path.name]


def test_a_long_line_of_stars_and_a_long_blank_take_no_longer_than_others() -> None:
    stars = b">a\nM" + b"*" * 300_000 + b"\n" * 300_000 + b"*\n>b\n" + b"*" * 300_000
    found = scanned(stars, piece_bytes=1 << 16)
    assert (found.total("sequences"), found.total("residues"), found.empty) == (2, 1, 1)


def test_a_single_line_larger_than_many_pieces_is_one_record() -> None:
    found = scanned(b">a\n" + b"MKVL" * 250_000 + b"\n>b\nM\n", piece_bytes=1 << 14)
    assert found.blocks["longest"].tolist() == [1_000_000, 1]
    assert found.total("sequences") == 2


def test_a_file_has_blocks_enough_to_divide_and_few_enough_to_hold(tmp_path: Path) -> None:
    path = tmp_path / "some.faa"
    for count, fewest, most in ((100, 4, 6), (10_000, 450, 512), (1_000_000, 480, 512)):
        path.write_bytes(b">name of one\nMKVLAAGIVGLCAKA\n" * count)
        blocks = scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2).blocks
        assert fewest <= len(blocks) <= most
        assert blocks["sequences"].sum() == count


def test_no_block_of_an_enormous_file_is_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.inputs.fasta_scan.BLOCK_BYTES_MAX", 1 << 12)
    found = scanned(b">a\nMKVL\n" * 1_000_000, block_bytes=1 << 9)
    assert found.blocks["length"].max() <= (1 << 12) + 9


def test_an_empty_file_has_no_blocks() -> None:
    found = scanned(b"")
    assert len(found.blocks) == 0
    assert found.total("sequences") == 0


def test_blank_lines_alone_are_not_sequences() -> None:
    assert scanned(b"\n\r\n  \n").total("sequences") == 0


def test_nul_bytes_far_into_a_file_are_detected() -> None:
    with pytest.raises(BadInput, match="NUL"):
        scanned(b">a\n" + b"MKVL\n" * 40_000 + b"\0\n")

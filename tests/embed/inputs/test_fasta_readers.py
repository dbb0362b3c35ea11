"""FASTA as two independent readers see it: Biopython and dnaio, which share no code with embed.

The generated files resemble files in the wild. The intended differences: a header's id ends at the
first ASCII white space, blanks are never residues, stop codons that end a record are not counted,
and what looks broken is refused.
"""

from __future__ import annotations

import gzip
import io
import re
import tempfile
from pathlib import Path

import dnaio
import numpy as np
import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.inputs.fasta import parse_records
from embed.inputs.fasta_scan import scan
from fsqueue import BadInput

pytestmark = pytest.mark.slow

Records = list[tuple[str, bytes]]

TEXT = "ACDEFGHIKLMNPQRSTVWYXBZUOJacgtnryswkm*-.;>|"
LETTERS = st.text(TEXT, max_size=30).map(lambda text: text.lstrip(">"))
HEADERS = st.one_of(
    st.sampled_from(
        ["a", "sp|P1|X desc > more", "", "a\tb", "x;y=1 *", "caf\u00e9 \u4e2d", "a\u00a0b"]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20),
).map(lambda text: re.sub("[\x1c-\x1f\x85]", "", text).rstrip())
"""Biopython drops white space of any alphabet at a header's end; to us only ASCII's is white."""
LINES = st.one_of(LETTERS, st.sampled_from(["", " ", "MK V", "\tMKV ", "**"]))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Return a FASTA file with any kind of line end, or none at its end."""
    lines = draw(st.lists(st.sampled_from(["", " "]), max_size=2))
    for _ in range(draw(st.integers(1, 6))):
        lines.append(">" + draw(HEADERS))
        lines += draw(st.lists(LINES, max_size=4))
    ends = draw(st.sampled_from(["\n", "\r\n"]))
    return ends.join(lines).encode() + draw(st.sampled_from([b"", ends.encode(), b"\n\n"]))


def by_embed(data: bytes, *, packed: bytes | None = None) -> Records:
    """Scan a file in small pieces and parse its blocks."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data if packed is None else packed)
        file.flush()
        found = scan(file.name, lambda n: np.minimum(n, 10) + 2, piece_bytes=17, block_bytes=9)
    parts = (data[begin : begin + n] for begin, n in found.blocks[["start", "length"]].tolist())
    read = [(record.id, record.residues) for part in parts for record in parse_records(part)]
    assert found.total("sequences") == len(read)
    assert found.total("residues") == sum(len(residues) for _, residues in read)
    assert found.empty == sum(not residues for _, residues in read)
    return read


def as_record(header: str, sequence: str) -> tuple[str, bytes]:
    """Return what another reader's record is to us, by the rules of this module's docstring."""
    id = re.split("[ \t\r\v\f\n]", header.lstrip(" \t\r\v\f"), maxsplit=1)[0]
    residues = re.sub("[\0-\x20]", "", sequence).rstrip("*")
    return id, residues.encode()


def by_biopython(data: bytes) -> Records:
    text = io.StringIO(data.decode(), newline="\n")
    return [as_record(title, sequence) for title, sequence in SimpleFastaParser(text)]


def by_dnaio(data: bytes) -> Records:
    with dnaio.open(io.BytesIO(data), fileformat="fasta") as reader:
        return [as_record(record.name, record.sequence) for record in reader]


@settings(max_examples=250)
@given(data=files())
def test_records_are_those_that_biopython_reads(data: bytes) -> None:
    assert by_embed(data) == by_biopython(data)


@settings(max_examples=250)
@given(data=files().filter(bytes.isascii))
def test_records_are_those_that_dnaio_reads(data: bytes) -> None:
    """dnaio reads ASCII alone, and takes a line that begins with # for a comment; we never do."""
    assert by_embed(data) == by_dnaio(data)


@settings(max_examples=60)
@given(data=files(), cuts=st.lists(st.floats(0, 1), max_size=3), level=st.integers(0, 9))
def test_gzip_of_any_number_of_members_is_the_same_file(
    data: bytes, cuts: list[float], level: int
) -> None:
    edges = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
    members = (data[a:b] for a, b in zip(edges, edges[1:], strict=False))
    packed = b"".join(gzip.compress(member, level) for member in members)
    assert by_embed(data, packed=packed) == by_biopython(data)


REFUSED = {
    "carriage returns alone": b">a\rMKV\r>b\rMKV\r",
    "a NUL": b">a\nMK\0V\n",
    "a comment before the first record": b";comment\n>a\nMKV\n",
    "text before the first record": b"MKV\n>a\nMKV\n",
    "a byte-order mark": b"\xef\xbb\xbf>a\nMKV\n",
}


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_other_readers_disagree_on_are_refused(what: str) -> None:
    """Biopython skips what stands before the first record, and keeps NULs; dnaio differs again."""
    with pytest.raises(BadInput):
        by_embed(REFUSED[what])


def test_a_semicolon_inside_a_record_is_a_letter_and_no_comment() -> None:
    """As for the other two; FASTA's comments of 1985 are in no file that is made today."""
    data = b">a\nMKV\n;not a comment\nLAA\n"
    assert by_embed(data) == by_biopython(data) == by_dnaio(data) == [("a", b"MKV;notacommentLAA")]


def test_a_line_of_100_megabytes_is_read_as_by_another(tmp_path: Path) -> None:
    path = tmp_path / "long.faa"
    path.write_bytes(b">long one\n" + b"MKVLAAGIVG" * 10_000_000 + b"\r\n*\n>b\nM")
    found = scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2)
    assert found.blocks["residues"].sum() == 100_000_001
    with dnaio.open(path, fileformat="fasta") as reader:
        lengths = [len(as_record(record.name, record.sequence)[1]) for record in reader]
    assert lengths == [100_000_000, 1]
    assert found.blocks["longest"].max() == 100_000_000
    assert found.total("sequences") == 2

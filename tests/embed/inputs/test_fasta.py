"""Every kind of file that is no FASTA is refused with one clear message."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from embed.inputs.fasta import parse_records
from embed.inputs.fasta_scan import scan
from fsqueue import BadInput

SOUND = b">a\nMKV\n"


def survey(path: Path | str) -> None:
    scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2)


REFUSED = {
    "fastq": (b"@read\nACGT\n+\nIIII\n", "FASTQ"),
    "genbank": (b"LOCUS       X\n", "GenBank"),
    "prose": (b"Dear reader,\n", "begins with b'Dear reader,"),
    "binary": (b"\x7fELF\x02\x01\x01\0\0\0", "NUL bytes"),
    "utf16": (">a\nMKV\n".encode("utf-16"), "NUL bytes"),
    "byte-order mark": (b"\xef\xbb\xbf" + SOUND, "byte-order mark"),
    "old mac": (b">a\rMKV\r>b\rMKV\r", "carriage returns"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(range(1, 60)), "zstandard"),
    "xz": (lzma.compress(SOUND), "xz"),
    "bzip2": (bz2.compress(SOUND), "bzip2"),
    "zip": (b"PK\x03\x04 and more", "zip"),
    "gzip cut short": (gzip.compress(SOUND * 1000)[:-20], "truncated"),
    "gzip with a wrong checksum": (gzip.compress(SOUND)[:-8] + b"\1" * 8, "damaged"),
    "gzip header alone": (b"\x1f\x8b\x08", "truncated"),
    "gzip of prose": (gzip.compress(b"Dear reader,\n"), "not FASTA"),
    "gzip with a damaged middle": (
        gzip.compress(os.urandom(50_000).hex().encode())[:20_000] + bytes(40_000),
        "damaged|not FASTA",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_not_fasta_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    data, reason = REFUSED[kind]
    path = tmp_path / "input.faa"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=reason) as refused:
        survey(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_standard_input_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match="every worker reads its part from the file again"):
        survey("-")


def test_a_missing_file_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        survey(tmp_path / "none.faa")
    with pytest.raises(BadInput, match="not a regular file"):
        survey(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="not a regular file"):
        survey(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.faa"
    path.write_bytes(SOUND)
    path.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        survey(path)


def test_an_id_is_the_header_up_to_the_first_white_space() -> None:
    data = (
        b">sp|P1|X desc\nM\n> spaced\nM\n>tab\tdesc\nM\n>\nM\n>a/b:c\r\nM\r\n>\xc3\xa9\nM\n>\xff\nM"
    )
    ids = [record.id for record in parse_records(data)]
    assert ids == ["sp|P1|X", "spaced", "tab", "", "a/b:c", "é", "\\xff"]


def test_residues_are_joined_over_lines_without_blanks_and_trailing_stars() -> None:
    data = b"\n\n>a\r\nMK v\r\n\r\nA*L\t*\r\n*\n>b\n>c\n***\n>d\nM>K\nV"
    assert [record.residues for record in parse_records(data)] == [b"MKvA*L", b"", b"", b"M>KV"]

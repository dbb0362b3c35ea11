"""Documents are plain text in UTF-8; anything else is refused with what to do."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from embed.inputs import documents
from fsqueue import BadInput

WORDS = {
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF.*pdftotext"),
    "a.docx": (b"PK\x03\x04\x14\x00", "zip archive, as docx.*pandoc"),
    "a.gz": (gzip.compress(b"text"), "gzip"),
    "a.xz": (b"\xfd7zXZ\x00", "xz -d"),
    "wide.txt": ("text".encode("utf-16"), "UTF-16.*iconv"),
    "a.bin": (b"some text\0\1\2", "binary: byte 9 is NUL"),
    "old.txt": ("naïve".encode("latin1"), "not UTF-8: byte 2 is 0xef.*iconv -f LATIN1"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_file_that_is_not_text_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    data, words = WORDS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=f"{name}: .*{words}"):
        documents.read(str(tmp_path / name))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("none.txt", "No such file"), ("pipe", "not a regular file"), ("", "not")):
        with pytest.raises(BadInput, match=words):
            documents.read(str(tmp_path / name))


def test_a_document_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BYTES_MAX", 10)
    path = tmp_path / "long.txt"
    path.write_text("0123456789")
    assert documents.read(str(path)) == b"0123456789"
    path.write_text("0123456789a")
    with pytest.raises(BadInput, match="11 bytes.*at most 10.*split"):
        documents.read(str(path))
    with pytest.raises(BadInput, match="at most 10"):
        documents.encode("x", "0123456789a")


def test_a_text_that_is_in_no_file_has_the_same_limits(tmp_path: Path) -> None:
    assert documents.encode("x", "naïve 🙂") == "naïve 🙂".encode()
    with pytest.raises(BadInput, match="x: is not UTF-8"):
        documents.encode("x", "half of a pair: \ud83d")
    with pytest.raises(BadInput, match="NUL"):
        documents.encode("x", "a\0b")

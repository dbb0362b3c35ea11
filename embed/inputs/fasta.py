"""Open FASTA files, refuse other formats, and parse records.

A record begins with `>` at the start of a line. Its id is the header up to the first white space;
its residues are all other bytes up to the next record, without blanks (every byte up to 32: line
ends of either kind, spaces, tabs) and without the stop codons `*` that end it. `fasta_scan.py`
counts by the same rules without parsing records.

What this module does not know: what a residue means to a model, and what a claim is.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from fsqueue import BadInput

Bytes = io.FileIO | gzip.GzipFile

BLANKS: Final = bytes(range(33))
"""The bytes that are never residues; a file with NUL is refused."""

HEAD: Final = 1 << 16
GZIP: Final = b"\x1f\x8b"
COMPRESSED: Final = {
    b"\x28\xb5\x2f\xfd": ("zstandard", "zstd -d"),
    b"\xfd7zXZ": ("xz", "xz -d"),
    b"BZh": ("bzip2", "bzip2 -d"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
}
OTHER_FORMATS: Final = {
    b"@": "It looks like FASTQ; convert it: seqtk seq -a",
    b"LOCUS": "It looks like GenBank; export it as FASTA",
    b"ID   ": "It looks like EMBL or Swiss-Prot; export it as FASTA",
    b"#": "It looks like a table; export it as FASTA",
}
GZIP_ERRORS: Final = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a damaged gzip file raises."""


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence; `residues` are its letters as they stand in the file, not normalised."""

    id: str
    residues: bytes


def parse_records(data: bytes) -> Iterator[Record]:
    """Yield the records of `data`, which begins with a record or blank lines before one."""
    pieces = (b"\n" + data).split(b"\n>")
    for piece in pieces[1:]:
        header, _, body = piece.partition(b"\n")
        words = header.split(None, 1)
        name = words[0].decode("utf-8", "backslashreplace") if words else ""
        yield Record(name, body.translate(None, BLANKS).rstrip(b"*"))


@contextmanager
def open_fasta(path: str) -> Iterator[tuple[Bytes, int]]:
    """Open a FASTA file for reading uncompressed bytes; yield it and its size on disk.

    Raises OSError if it cannot be opened. Reading may raise any of GZIP_ERRORS.
    """
    with open(path, "rb", buffering=0) as raw:
        size = os.fstat(raw.fileno()).st_size
        is_gzip = raw.read(2) == GZIP
        raw.seek(0)
        if not is_gzip:
            yield raw, size
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as file:
            yield file, size


@contextmanager
def input_errors(path: str) -> Iterator[None]:
    """Turn the errors of reading `path` into BadInput, with the cause and what to do."""
    try:
        yield
    except GZIP_ERRORS as error:
        raise BadInput(
            f"{path}: the gzip data are damaged or truncated ({error}), as by an interrupted copy "
            f"or download. Check with gzip -t, and fetch the file again."
        ) from error
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror or error}). Check the path and its "
            f"permissions."
        ) from error


def refuse_non_fasta(path: str) -> None:
    """Raise BadInput, with the format it has instead, unless `path` may be a FASTA file."""
    if path == "-":
        raise BadInput(
            "-: standard input cannot be planned, because every worker reads its part from the "
            "file again. Save it to a file that the workers can see, then plan that."
        )
    with input_errors(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadInput(
                f"{path}: is not a regular file, and workers must be able to read it again. Save "
                f"its content to a file, then plan that."
            )
        with open_fasta(path) as (file, _size):
            head = file.read(HEAD) or b""
    if head and (reason := _why_not_fasta(head)):
        raise BadInput(f"{path}: {reason}.")


def _why_not_fasta(head: bytes) -> str | None:
    for magic, (name, tool) in COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed as {name}, which cannot be read in parts. Decompress it: {tool}"
    if head.startswith(b"\xef\xbb\xbf"):
        return (
            "begins with a byte-order mark, as Windows editors write it. Remove it: "
            r"sed -i '1s/^\xEF\xBB\xBF//' FILE"
        )
    if b"\0" in head:
        return "contains NUL bytes: it is binary, or UTF-16 text. FASTA is plain text"
    if b"\n" not in head and b"\r" in head[:-1]:
        return "has lines that end in carriage returns alone. Convert it: tr '\\r' '\\n'"
    text = head.lstrip(BLANKS)
    if not text or text.startswith(b">"):
        return None
    for start, hint in OTHER_FORMATS.items():
        if text.startswith(start):
            return f"is not FASTA: it does not begin with '>'. {hint}"
    return (
        f"is not FASTA: it begins with {text[:20]!r}, not with '>'. Check that this is the right "
        f"file"
    )

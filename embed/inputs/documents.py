"""Read documents: files of plain text in UTF-8; everything else is refused with what to do.

What this module does not know: chunks, tokens and models.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from embed.inputs.fasta import GZIP, PACKED, explained
from fsqueue import BadInput

BYTES_MAX: Final = 64 << 20
"""A document is in memory whole while it is cut."""
OTHERS: Final = {
    b"%PDF": "is a PDF. Take its text out: pdftotext FILE",
    b"{\\rtf": "is RTF. Convert it: pandoc -t plain FILE",
    b"\xd0\xcf\x11\xe0": "is an old Office file. Convert it: soffice --convert-to txt FILE",
    b"PK\x03\x04": "is a zip archive, as docx, odt and epub are. Convert it: pandoc -t plain",
    GZIP: "is compressed by gzip. First: gunzip",
    b"\xff\xfe": "is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8",
}


def read(path: str) -> bytes:
    """Return a document's bytes, which are UTF-8. Raises BadInput, saying what it is instead."""
    with explained(path):
        facts = os.stat(path)
        if not stat.S_ISREG(facts.st_mode):
            raise BadInput(f"{path}: is not a regular file. Name files of text.")
        if facts.st_size > BYTES_MAX:
            raise BadInput(
                f"{path}: has {facts.st_size:,} bytes, and a document is at most {BYTES_MAX:,}, "
                f"for it is read whole. Divide it: split -C 50M FILE"
            )
        with open(path, "rb") as file:
            data = file.read(BYTES_MAX + 1)
    check(path, data)
    return data


def of_text(name: str, text: str) -> bytes:
    """Return the bytes of a text that is at hand. Raises BadInput if it is none."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > BYTES_MAX:
        raise BadInput(f"{name}: has {len(data):,} bytes, and a text is at most {BYTES_MAX:,}.")
    check(name, data)
    return data


def check(name: str, data: bytes) -> None:
    """Raise BadInput unless the bytes are text in UTF-8."""
    packed = {magic: f"is compressed as {kind}. First: {tool}"
              for magic, (kind, tool) in PACKED.items()}  # fmt: skip
    for magic, what in (packed | OTHERS).items():
        if data.startswith(magic):
            raise BadInput(f"{name}: {what}.")
    if (at := data.find(b"\0")) >= 0:
        raise BadInput(
            f"{name}: is binary: there is a NUL at byte {at:,}. Documents are plain text in UTF-8."
        )
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name}: is not UTF-8: byte {error.start:,} is 0x{data[error.start]:02x}. If it is "
            f"text in an older encoding: iconv -f LATIN1 -t UTF-8 FILE"
        ) from error

"""Read documents: files of plain text in UTF-8. Other files are refused, with how to convert them.

What this module does not know: chunks, tokens and models.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from embed.inputs.fasta import COMPRESSED, GZIP, input_errors
from fsqueue import BadInput

BYTES_MAX: Final = 64 << 20
"""A whole document is in memory while it is cut into chunks."""
OTHER_FORMATS: Final = {
    b"%PDF": "is a PDF. Extract its text: pdftotext FILE",
    b"{\\rtf": "is RTF. Convert it: pandoc -t plain FILE",
    b"\xd0\xcf\x11\xe0": "is an old Office file. Convert it: soffice --convert-to txt FILE",
    b"PK\x03\x04": "is a zip archive, as docx, odt and epub are. Convert it: pandoc -t plain",
    GZIP: "is compressed by gzip. Decompress it: gunzip",
    b"\xff\xfe": "is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8",
}


def read(path: str) -> bytes:
    """Return a document's bytes, which are UTF-8. Raises BadInput, naming its actual format."""
    with input_errors(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path}: is not a regular file. Name text files.")
        if status.st_size > BYTES_MAX:
            raise BadInput(
                f"{path}: has {status.st_size:,} bytes; documents are read whole, and can have at "
                f"most {BYTES_MAX:,}. Divide it: split -C 50M FILE"
            )
        with open(path, "rb") as file:
            data = file.read(BYTES_MAX + 1)
    check(path, data)
    return data


def encode(name: str, text: str) -> bytes:
    """Return the bytes of a text that is in no file. Raises BadInput if it is not plain text."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > BYTES_MAX:
        raise BadInput(
            f"{name}: has {len(data):,} bytes, and a text can have at most {BYTES_MAX:,}."
        )
    check(name, data)
    return data


def check(name: str, data: bytes) -> None:
    """Raise BadInput unless the bytes are text in UTF-8."""
    compressed = {
        magic: f"is compressed as {name}. Decompress it: {tool}"
        for magic, (name, tool) in COMPRESSED.items()
    }
    for magic, what in (compressed | OTHER_FORMATS).items():
        if data.startswith(magic):
            raise BadInput(f"{name}: {what}.")
    if (at := data.find(b"\0")) >= 0:
        raise BadInput(f"{name}: is binary: byte {at:,} is NUL. Documents are plain text in UTF-8.")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name}: is not UTF-8: byte {error.start:,} is 0x{data[error.start]:02x}. If it is "
            f"text in an older encoding: iconv -f LATIN1 -t UTF-8 FILE"
        ) from error

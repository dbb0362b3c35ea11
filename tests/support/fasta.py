"""A reader of FASTA that shares no code with the one it is compared with."""

from __future__ import annotations

import re


def naive(data: bytes) -> list[tuple[str, bytes]]:
    """Read FASTA a line at a time, byte by byte. Raises ValueError if it is not FASTA."""
    found: list[tuple[str, bytes]] = []
    for line in data.split(b"\n"):
        if line.startswith(b">"):
            word = re.match(rb"[ \t\r\v\f]*([^ \t\r\v\f]*)", line[1:])
            assert word
            found.append((word[1].decode("utf-8", "backslashreplace"), b""))
            continue
        letters = bytes(byte for byte in line if byte > 32)
        if found:
            found[-1] = (found[-1][0], found[-1][1] + letters)
        elif letters:
            raise ValueError("text before the first record")
    return [(name, residues.rstrip(b"*")) for name, residues in found]

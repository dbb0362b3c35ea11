"""Turn residues into ESM-2 token ids by table: one token for each residue, whatever it is.

The tokenizer that comes with the model merges a run of unknown characters into a single `<unk>`,
which shifts every later position; and it is a hundred times slower. Here lower case is read as
upper case, and every byte outside the vocabulary as one X (`unknown` counts them).
"""

from __future__ import annotations

from typing import Final

from embed.models.windows import LetterWindows

VOCABULARY: Final = (
    "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
).split()
"""The tokens of every published ESM-2, in the order of their ids."""

BEGIN, END, X = (VOCABULARY.index(token) for token in ("<cls>", "<eos>", "X"))
LETTERS: Final = "".join(token for token in VOCABULARY if len(token) == 1)
KNOWN: Final = (LETTERS + LETTERS.lower()).encode()


def _table() -> bytes:
    table = bytearray([X]) * 256
    for letter in LETTERS:
        table[ord(letter)] = table[ord(letter.lower())] = VOCABULARY.index(letter)
    return bytes(table)


TABLE: Final = _table()


class EsmTokenizer(LetterWindows):
    """The table of ESM-2."""

    uninformative = b"Xx"

    def count_unknown(self, letters: bytes) -> int:
        """Return how many residues are unknown."""
        return unknown(letters)

    def read(self, letters: bytes) -> tuple[bytes, int]:
        """Return the token ids, without begin and end, and how many residues are unknown."""
        return token_ids(letters), unknown(letters)


def token_ids(residues: bytes) -> bytes:
    """Return one token id for each residue, as bytes, without begin and end."""
    return residues.translate(TABLE)


def unknown(residues: bytes) -> int:
    """Count the residues without a token, which are read as X."""
    return len(residues.translate(None, KNOWN))

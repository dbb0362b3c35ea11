"""Turn DNA into DNABERT token ids, with the BPE vocabulary that the model ships.

The published tokenizer.json pads and truncates everything to 2,000 tokens, and has upper-case
letters only, so that soft-masked DNA, in lower case, would be all [UNK]. All three are undone here.
Each base outside the vocabulary (N and the other IUPAC codes) is one [UNK]; `unknown` counts them.

One of the doors to tokenizers. What this module does not know: files of sequences, models, claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.models.encode_many import encode_many
from embed.models.windows import LetterWindows
from fsqueue import ClaimImpossible

SPECIAL: Final = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
"""The special tokens of every published checkpoint; `network.py` adds the last two."""

_ASCII: Final = bytes(byte if byte < 127 else ord("N") for byte in range(256))


class DnaTokenizer(LetterWindows):
    """A loaded BPE vocabulary."""

    uninformative = b"Nn"

    def __init__(self, folder: str) -> None:
        """Read tokenizer.json in `folder`. Raises ClaimImpossible if it is not a DNABERT's."""
        from tokenizers import Tokenizer

        path = f"{folder}/tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(path)
        except Exception as error:  # the library raises the bare class
            raise ClaimImpossible(
                f"{path}: cannot be read ({error}), and DNA cannot be tokenized without it. Fetch "
                f"the model again: DNABERT ships this file."
            ) from error
        found = {name: self._tokenizer.token_to_id(name) for name in SPECIAL}
        if found != SPECIAL:
            raise ClaimImpossible(
                f"{path}: has {found} where DNABERT has {SPECIAL}; it belongs to another model."
            )
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._encode_many = encode_many(self._tokenizer)
        self.vocabulary: int = self._tokenizer.get_vocab_size()

    def count_unknown(self, letters: bytes) -> int:
        """Return how many bases are unknown."""
        return len(letters.translate(None, b"ACGTacgt"))

    def read(self, letters: bytes) -> tuple[NDArray[np.uint16], int]:
        """Return the token ids, without [CLS] and [SEP], and how many bases are unknown."""
        return next(self.read_many([letters]))

    def read_many(self, sequences: Sequence[bytes]) -> Iterator[tuple[NDArray[np.uint16], int]]:
        """Yield what `read` returns of each."""
        texts = [letters.upper().translate(_ASCII).decode() for letters in sequences]
        for found in self._encode_many(texts):
            ids = np.array(found, np.uint16)
            yield ids, unknown(ids)

    def ids(self, bases: bytes) -> NDArray[np.uint16]:
        """Return the token ids of a sequence, without [CLS] and [SEP]."""
        return self.read(bases)[0]


def unknown(ids: NDArray[np.uint16]) -> int:
    """Count the bases without a token, which are read as [UNK]."""
    return len(ids) - int(np.count_nonzero(ids != SPECIAL["[UNK]"]))

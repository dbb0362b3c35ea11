"""Turn text or sequences into the token ids of any model, with the tokenizer that it ships.

tokenizer.json goes through the tokenizers library, and the padding and truncation that it may carry
are undone: what is longer than the model takes is cut or read in windows here, and counted. Where a
model ships an older form of vocabulary, transformers reads it.

Some vocabularies of residues or bases know capitals only, or want blanks between the letters; to
them a sequence as it stands in a file would be one unknown token. A probe tells, once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fsqueue import ClaimImpossible

Ids = NDArray[np.int64]

PROBE: Final = "ACGTACGTACGT"
"""Bases, and residues too: whoever reads either knows these letters."""


class GenericTokens:
    """A loaded tokenizer."""

    def __init__(self, folder: str) -> None:
        """Read the tokenizer in `folder`. Raises ClaimImpossible if there is none to read."""
        try:
            read = _from_json if os.path.isfile(f"{folder}/tokenizer.json") else _from_vocabulary
            self._encode, self._places, framed, self._unknown = read(folder)
            own = self._encode("a")
            at = next(n for n in range(len(framed)) if framed[n : n + len(own)] == own)
        except Exception as error:  # the tokenizers library raises the bare class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClaimImpossible(
                f"{folder}: its tokenizer cannot be read ({reason}). Fetch the model again, or "
                f"write a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            ) from error
        self.frame = np.array(framed[:at], np.int64), np.array(framed[at + len(own) :], np.int64)
        self.edges = len(self.frame[0]), len(self.frame[1])
        self._spaced = self._misses(PROBE) and not self._misses(" ".join(PROBE))
        joint = " " if self._spaced else ""
        small, large = joint.join(PROBE.lower()), joint.join(PROBE)
        self._capitals = self._misses(small) and not self._misses(large)

    def read(self, letters: bytes) -> tuple[Ids, int]:
        """Return the token ids of a text in UTF-8, without begin and end, and how many of them
        stand for what the vocabulary does not know."""
        text = letters.decode("utf-8", "replace")
        text = text.upper() if self._capitals else text
        ids = np.array(self._encode(" ".join(text) if self._spaced else text), np.int64)
        return ids, self._count_unknown(ids)

    def windows(self, letters: bytes, most: int) -> Iterator[tuple[Ids, int, float]]:
        """Yield windows of at most `most` tokens, begin and end included: their ids, how many are
        unknown, and how many of the letters they stand for, about."""
        ids, _ = self.read(letters)
        room = max(1, most - sum(self.edges))
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            yield part, self._count_unknown(part), len(letters) * len(part) / len(ids)

    @property
    def reads_text(self) -> bool:
        """Say whether its vocabulary is one of words, not of residues or bases."""
        return not (self._spaced or self._capitals)

    def places(self, text: str) -> list[tuple[int, int]]:
        """Return of each token of a text the characters that it stands for, from and to."""
        return self._places(text)

    def _misses(self, text: str) -> bool:
        return self._unknown in self._encode(text)

    def _count_unknown(self, ids: Ids) -> int:
        return 0 if self._unknown is None else int((ids == self._unknown).sum())


Places = Callable[[str], list[tuple[int, int]]]
Read = tuple[Callable[[str], list[int]], Places, list[int], int | None]
"""What encodes a text without begin and end, what tells where each token stands, the ids of "a"
with begin and end, and the unknown token."""


def _from_json(folder: str) -> Read:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def places(text: str) -> list[tuple[int, int]]:
        return list(tokenizer.encode(text, add_special_tokens=False).offsets)

    with open(f"{folder}/tokenizer.json", encoding="utf-8") as file:
        model: dict[str, Any] = json.load(file)["model"]
    unknown = model.get("unk_id")
    if model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])
    return encode, places, list(tokenizer.encode("a").ids), unknown


def _from_vocabulary(folder: str) -> Read:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    def places(text: str) -> list[tuple[int, int]]:
        if not tokenizer.is_fast:
            raise ClaimImpossible(
                f"{folder}: its tokenizer cannot tell where in a text its tokens stand. Write a "
                f"tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        read = tokenizer(
            text, add_special_tokens=False, truncation=False, return_offsets_mapping=True
        )
        return list(read["offset_mapping"])

    return encode, places, list(tokenizer("a")["input_ids"]), tokenizer.unk_token_id

"""Turn text or sequences into the token ids of any model, with the tokenizer that it ships.

tokenizer.json is read by the tokenizers library, and its padding and truncation are switched off:
longer inputs are truncated or read in windows by fsqueue, and counted. Older forms of vocabulary
are read by transformers.

Some vocabularies of residues or bases have upper-case letters only, or need blanks between the
letters; a sequence as it stands in a file would be one unknown token to them. A probe finds out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fsqueue import ClaimImpossible

Ids = NDArray[np.int64]

PROBE: Final = "ACGTACGTACGT"
"""Both bases and residues, so every vocabulary of either has these letters."""


class GenericTokenizer:
    """A loaded tokenizer."""

    def __init__(self, folder: str, prefix: str = "", *, pools_prefix: bool = True) -> None:
        """Read the tokenizer in `folder`. Raises ClaimImpossible if it cannot be read.

        Every input is read after `prefix`; `pools_prefix` says whether its tokens are pooled.
        """
        try:
            load = _from_json if os.path.isfile(f"{folder}/tokenizer.json") else _from_vocabulary
            backend = load(folder)
            framed, own = backend.framed_a, backend.encode("a")
            at = next(n for n in range(len(framed)) if framed[n : n + len(own)] == own)
        except Exception as error:  # the tokenizers library raises the bare class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClaimImpossible(
                f"{folder}: its tokenizer cannot be read ({reason}). Fetch the model again, or "
                f"write a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            ) from error
        self._encode, self._offsets = backend.encode, backend.offsets
        self._unknown = backend.unknown
        self.frame = np.array(framed[:at], np.int64), np.array(framed[at + len(own) :], np.int64)
        self.edges = len(self.frame[0]), len(self.frame[1])
        self._needs_blanks = self._misses(PROBE) and not self._misses(" ".join(PROBE))
        joint = " " if self._needs_blanks else ""
        lower, upper = joint.join(PROBE.lower()), joint.join(PROBE)
        self._needs_upper_case = self._misses(lower) and not self._misses(upper)
        self._prefix = prefix
        self.prefix_tokens = len(self._encode(prefix)) if prefix else 0
        self.left_out = 0 if pools_prefix else self.prefix_tokens

    def read(self, letters: bytes) -> tuple[Ids, int]:
        """Return the token ids of a text in UTF-8, without begin and end, and how many of them are
        unknown tokens."""
        text = letters.decode("utf-8", "replace")
        text = text.upper() if self._needs_upper_case else text
        text = " ".join(text) if self._needs_blanks else text
        ids = np.array(self._encode(self._prefix + text), np.int64)
        return ids, self._count_unknown(ids[self.prefix_tokens :])

    def windows(self, letters: bytes, most: int) -> Iterator[tuple[Ids, int, float]]:
        """Yield windows of at most `most` tokens, begin and end included: their ids, how many are
        unknown, and approximately how many letters they stand for."""
        read, _ = self.read(letters)
        prefix, ids = read[: self.prefix_tokens], read[self.prefix_tokens :]
        room = max(1, most - sum(self.edges) - self.prefix_tokens)
        for start in range(0, len(ids), room):
            part = ids[start : start + room]
            share = len(letters) * len(part) / len(ids)
            yield np.concatenate([prefix, part]), self._count_unknown(part), share

    @property
    def reads_text(self) -> bool:
        """Return whether its vocabulary is one of words, not of residues or bases."""
        return not (self._needs_blanks or self._needs_upper_case)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the range of characters that each token of a text stands for."""
        return self._offsets(text)

    def _misses(self, text: str) -> bool:
        return self._unknown in self._encode(text)

    def _count_unknown(self, ids: Ids) -> int:
        return 0 if self._unknown is None else int((ids == self._unknown).sum())


@dataclass(frozen=True, slots=True)
class _Backend:
    """What a library provides of a tokenizer."""

    encode: Callable[[str], list[int]]
    """The ids of a text without begin and end."""
    offsets: Callable[[str], list[tuple[int, int]]]
    framed_a: list[int]
    """The ids of "a" with begin and end."""
    unknown: int | None


def _from_json(folder: str) -> _Backend:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def offsets(text: str) -> list[tuple[int, int]]:
        return list(tokenizer.encode(text, add_special_tokens=False).offsets)

    with open(f"{folder}/tokenizer.json", encoding="utf-8") as file:
        model: dict[str, Any] = json.load(file)["model"]
    unknown = model.get("unk_id")
    if model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])
    return _Backend(encode, offsets, list(tokenizer.encode("a").ids), unknown)


def _from_vocabulary(folder: str) -> _Backend:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    def offsets(text: str) -> list[tuple[int, int]]:
        if not tokenizer.is_fast:
            raise ClaimImpossible(
                f"{folder}: its tokenizer does not report the positions of tokens in a text. Write "
                f"a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        read = tokenizer(
            text, add_special_tokens=False, truncation=False, return_offsets_mapping=True
        )
        return list(read["offset_mapping"])

    return _Backend(encode, offsets, list(tokenizer("a")["input_ids"]), tokenizer.unk_token_id)

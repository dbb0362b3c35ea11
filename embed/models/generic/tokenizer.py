"""Turn text or sequences into the token ids of any model, with the tokenizer that it ships.

tokenizer.json is read by the tokenizers library, and its padding and truncation are switched off:
longer inputs are truncated or read in windows by fsqueue, and counted. Older forms of vocabulary
are read by transformers.

Some vocabularies of residues or bases have upper-case letters only, or need blanks between the
letters; a sequence as it stands in a file would be one unknown token to them. A probe finds out.
Where every residue is a token of its own, a table made of the tokenizer's answers takes its place:
tokenizers merge unknown letters, which would shift all later tokens, and a table is faster.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.models.encode_many import EncodeMany, encode_many, in_blocks
from embed.models.generic.shape import SENTENCEPIECE_FILES
from embed.models.windows import Window, Windows
from fsqueue import ClaimImpossible, NotSupportedError

Ids = NDArray[np.int64]
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RARE: Final = "UZOB"
"""Residues that ProtTrans's authors replace by X, though the vocabulary has them."""
PROTEIN: Final = "MKWLEQ"
"""Residues that are no bases."""
LETTERS_PER_TOKEN: Final = 32
PROBE: Final = "ACGTACGTACGT"
"""Both bases and residues, so every vocabulary of either has these letters."""


class GenericTokenizer:
    """A loaded tokenizer."""

    def __init__(self, folder: str, prefix: str = "", *, pools_prefix: bool = True) -> None:
        """Read the tokenizer in `folder`. Raises ClaimImpossible if it cannot be read.

        Every input is read after `prefix`; `pools_prefix` says whether its tokens are pooled.
        """
        try:
            has_json = os.path.isfile(f"{folder}/tokenizer.json")
            if not has_json:
                _refuse_without_sentencepiece(folder)
            load = _from_json if has_json else _from_vocabulary
            backend = load(folder)
            framed, own = backend.framed_a, backend.encode("a")
            at = next(n for n in range(len(framed)) if framed[n : n + len(own)] == own)
        except NotSupportedError:
            raise
        except Exception as error:  # the tokenizers library raises the bare class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClaimImpossible(
                f"{folder}: its tokenizer cannot be read ({reason}). Fetch the model again, or "
                f"write a tokenizer.json: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            ) from error
        self._encode, self._offsets = backend.encode, backend.offsets
        self._encode_many = backend.encode_many
        self._unknown, self._id_of = backend.unknown, backend.id_of
        self.frame = np.array(framed[:at], np.int64), np.array(framed[at + len(own) :], np.int64)
        self.edges = len(self.frame[0]), len(self.frame[1])
        self._needs_blanks = self._misses(PROBE) and not self._misses(" ".join(PROBE))
        joint = " " if self._needs_blanks else ""
        lower, upper = joint.join(PROBE.lower()), joint.join(PROBE)
        self._needs_upper_case = self._misses(lower) and not self._misses(upper)
        self._lowers = _lowers(folder)
        self.reads_proteins = not self._misses(joint.join(PROTEIN))
        self._table = None if self.reads_text else self._make_table(joint)
        self.uninformative = b"" if self.reads_text else b"Xx" if self.reads_proteins else b"Nn"
        self._prefix = prefix
        self._prefix_ids = np.array(self._encode(prefix) if prefix else [], np.int64)
        self.prefix_tokens = len(self._prefix_ids)
        self.left_out = 0 if pools_prefix else self.prefix_tokens

    def read(self, letters: bytes) -> tuple[Ids, int]:
        """Return the token ids of a text in UTF-8, without begin and end, and how many of them are
        unknown tokens."""
        prefix, ids, unknown = next(self._tokens([letters]))
        return np.concatenate([prefix, ids]), int(unknown.sum())

    def count_unknown(self, letters: bytes) -> int | None:
        """Return how many letters are unknown, if every letter is a token; else None."""
        if self._table is None:
            return None
        return int(self._table[1][np.frombuffer(letters, np.uint8)].sum())

    @property
    def reads_letters(self) -> bool:
        """Return whether every letter is a token."""
        return self._table is not None

    def windows(
        self, sequences: Sequence[bytes], how: Windows, *, first_only: bool
    ) -> Iterator[tuple[list[Window], bool]]:
        """Yield windows of each sequence, of at most `how.most` tokens, begin, end and prefix
        included; with `first_only` the first one, and whether there are others."""
        room = self.room(how.most)
        read = self._tokens(sequences)
        for letters, (prefix, ids, unknown) in zip(sequences, read, strict=True):
            spans, has_more = how.kept(len(ids), room, first_only=first_only)
            windows = []
            for begin, end, first, stop in spans:
                share = len(letters) * (end - begin) / len(ids)
                part = np.concatenate([prefix, ids[begin:end]])
                count = int(np.count_nonzero(unknown[begin:end]))
                windows.append(Window(part, count, share, first, stop))
            yield windows, has_more

    def room(self, most: int) -> int:
        """Return how many tokens of a text fit into `most`, with begin, end and prefix."""
        return max(1, most - sum(self.edges) - self.prefix_tokens)

    def exceeds(self, letters: bytes, room: int) -> tuple[bool, int]:
        """Return whether a text has more than `room` tokens, and how many letters that took.

        No tokenizer reads a whole text in tokens of LETTERS_PER_TOKEN letters, so the rest of a
        long one is not read.
        """
        part = letters[: LETTERS_PER_TOKEN * room]
        return len(next(self._tokens([part]))[1]) > room, len(part)

    def _tokens(self, sequences: Sequence[bytes]) -> Iterator[tuple[Ids, Ids, NDArray[np.bool_]]]:
        """Yield the prefix's ids, those of each text after it, and which of these are unknown."""
        if self._table is not None:
            table, is_unknown = self._table
            for letters in sequences:
                at = np.frombuffer(letters, np.uint8)
                yield self._prefix_ids, table[at], is_unknown[at]
            return
        texts = [self._prefix + self._text(letters) for letters in sequences]
        unknown = -1 if self._unknown is None else self._unknown
        for found in self._encode_many(texts):
            ids = np.array(found, np.int64)
            prefix, own = ids[: self.prefix_tokens], ids[self.prefix_tokens :]
            yield prefix, own, own == unknown

    def _text(self, letters: bytes) -> str:
        """Return a text, or the letters of a sequence, as the vocabulary has them."""
        text = letters.decode("utf-8", "replace")
        text = text.upper() if self._needs_upper_case else text.lower() if self._lowers else text
        return " ".join(text) if self._needs_blanks else text

    @property
    def reads_text(self) -> bool:
        """Return whether its vocabulary is one of words, not of residues or bases."""
        return not (self._needs_blanks or self._needs_upper_case)

    def has_token(self, token: str) -> bool:
        """Return whether the vocabulary has this token."""
        found = self._id_of(token)
        return found is not None and found != self._unknown

    def id_of(self, token: str) -> int:
        """Return the id of a token that the vocabulary has."""
        found = self._id_of(token)
        assert found is not None
        return found

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the range of characters that each token of a text stands for."""
        return self._offsets(text)

    def _misses(self, text: str) -> bool:
        return self._unknown in self._encode(text)

    def _make_table(self, joint: str) -> tuple[Ids, NDArray[np.bool_]] | None:
        """Return the id of each byte, and which bytes are unknown, if each residue is a token."""
        answers = {letter: self._encode(letter) for letter in LETTERS}
        known = {
            letter: ids[0]
            for letter, ids in answers.items()
            if len(ids) == 1 and ids[0] != self._unknown
        }
        for word in ("".join(known), PROBE, "".join(known)[::-1] * 3):
            expected = [known.get(letter) for letter in word]
            if not known or self._encode(joint.join(word)) != expected:
                return None  # several letters are one token, as in a vocabulary of six bases
        if self.reads_proteins and self._needs_blanks and "X" in known:
            known = {letter: id for letter, id in known.items() if letter not in RARE}
        default = known.get("X", known.get("N")) if self._unknown is None else self._unknown
        default = known.get("X", default) if self.reads_proteins else default
        assert default is not None
        table, unknown = np.full(256, default, np.int64), np.ones(256, np.bool_)
        for letter, id in known.items():
            for byte in (ord(letter), ord(letter.lower())):
                table[byte], unknown[byte] = id, False
        return table, unknown


@dataclass(frozen=True, slots=True)
class _Backend:
    """What a library provides of a tokenizer."""

    encode: Callable[[str], list[int]]
    """The ids of a text without begin and end."""
    encode_many: EncodeMany
    """Those of many texts."""
    offsets: Callable[[str], list[tuple[int, int]]]
    framed_a: list[int]
    """The ids of "a" with begin and end."""
    unknown: int | None
    id_of: Callable[[str], int | None]
    """The id of a token."""


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
    framed = list(tokenizer.encode("a").ids)
    many = encode_many(tokenizer)
    return _Backend(encode, many, offsets, framed, unknown, tokenizer.token_to_id)


def _from_vocabulary(folder: str) -> _Backend:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    def many(texts: list[str]) -> list[list[int]]:
        found = tokenizer(texts, add_special_tokens=False, truncation=False)["input_ids"]
        return list(map(list, found))

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

    framed, unknown = list(tokenizer("a")["input_ids"]), tokenizer.unk_token_id
    id_of = tokenizer.convert_tokens_to_ids
    return _Backend(encode, in_blocks(many), offsets, framed, unknown, id_of)


def _lowers(folder: str) -> bool:
    """Return whether sentence-transformers lowers the case of every text for this model."""
    path = f"{folder}/sentence_bert_config.json"
    if not os.path.isfile(path):
        return False
    with open(path, encoding="utf-8") as file:
        return bool(json.load(file).get("do_lower_case"))


def _refuse_without_sentencepiece(folder: str) -> None:
    names = [name for name in SENTENCEPIECE_FILES if os.path.isfile(f"{folder}/{name}")]
    if names and not importlib.util.find_spec("sentencepiece"):
        raise NotSupportedError(
            f"{folder}/{names[0]}: is read by the library sentencepiece, which is not installed. "
            f"Type: pip install 'fsqueue[sentencepiece]'"
        )

"""Know the families of models: how long a sequence each takes, how it reads one, who loads it.

Two are known by heart, ESM-2 and DNABERT; the third is whatever else transformers can load.
Planning asks for the numbers; only `load` imports torch. Another family would be a row here, a
loader with `hidden`, and a reader of its alphabet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any, Final, Protocol


@dataclass(frozen=True, slots=True)
class Family:
    """What planning must know of a kind of model."""

    name: str
    residues_max: int
    """The longest sequence it was trained on, in letters: what --max-residues is unless said."""
    long: str
    """What becomes of longer ones unless said: truncate, window or fail."""
    tokens_per_residue: float
    libraries: tuple[str, ...]
    """Whose versions an output's header tells."""
    in_tokens: bool = False
    """Whether the longest sequence is counted in tokens, as only the model knows them."""


FAMILIES: Final = {
    "esm2": Family("esm2", 1022, "truncate", 1.0, ("fsqueue", "torch", "transformers")),
    "dnabert": Family("dnabert", 10_000, "window", 0.22, ("fsqueue", "torch", "tokenizers")),
    "auto": Family(
        "auto", 512, "truncate", 0.3, ("fsqueue", "torch", "transformers", "tokenizers"), True
    ),
}


class Tokens(Protocol):
    """Reads the letters of a sequence."""

    edges: tuple[int, int]
    """How many tokens the encoder puts before and after them."""

    def read(self, letters: bytes) -> tuple[Sized, int]:
        """Return the token ids, without begin and end, and how many letters are unknown."""

    def windows(self, letters: bytes, most: int) -> Iterator[tuple[Sized, int, float]]:
        """Yield what the model takes at once: ids, how many are unknown, how many letters."""


def reader(family: str, folder: str) -> Tokens:
    """Return what reads sequences for the model in `folder`; ESM-2 needs none to be there.

    Raises ClaimImpossible if its tokenizer cannot be read.
    """
    if family == "auto":
        from embed.models.generic.tokens import GenericTokens

        return GenericTokens(folder)
    if family == "dnabert":
        from embed.models.dnabert.tokens import DnaTokens

        return DnaTokens(folder)
    from embed.models.esm2.tokens import EsmTokens

    return EsmTokens()


def load(family: str, folder: str, dtype: str, device: Any) -> tuple[Any, Tokens]:
    """Load the encoder of the model in `folder` to a torch device, and what reads its sequences.

    Raises ClaimImpossible if the files are not all that the model needs.
    """
    if family == "auto":
        from embed.models.generic import network as generic
        from embed.models.generic.tokens import GenericTokens

        tokens = GenericTokens(folder)
        return generic.load(folder, dtype, device, tokens.frame), tokens
    if family == "dnabert":
        from embed.models.dnabert import network as dnabert

        return dnabert.load(folder, dtype, device), reader(family, folder)
    from embed.models.esm2 import network as esm2

    return esm2.load(folder, dtype, device), reader(family, folder)

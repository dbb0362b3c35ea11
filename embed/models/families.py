"""List the families of models: how long a sequence each takes, how it is tokenized and loaded.

Two have their own code, ESM-2 and DNABERT; the third is any other model that transformers can load.
Planning needs only the numbers; only `load` imports torch. To add a family: a row here, a network
with a method `hidden`, and a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from embed.models.conventions.convention import PLAIN, Convention
from embed.models.windows import Window, Windows

if TYPE_CHECKING:
    from embed.models.conventions.pooling import Pooler


@dataclass(frozen=True, slots=True)
class Family:
    """What planning must know about a kind of model."""

    name: str
    residues_max: int
    """The longest sequence it was trained on, in letters: the default of --max-residues."""
    long: str
    """The default of --long, for longer sequences: truncate, window or fail."""
    tokens_per_residue: float
    libraries: tuple[str, ...]
    """The libraries whose versions are in an output's header."""
    in_tokens: bool = False
    """Whether lengths are counted in tokens, which takes the model's tokenizer."""
    letters: str = "letters"
    """What the letters of its sequences are called in plans and messages."""


FAMILIES: Final = {
    "esm2": Family(
        "esm2", 1022, "truncate", 1.0, ("fsqueue", "torch", "transformers"), False, "residues"
    ),
    "dnabert": Family(
        "dnabert", 10_000, "window", 0.22, ("fsqueue", "torch", "tokenizers"), False, "bases"
    ),
    "auto": Family(
        "auto", 512, "truncate", 0.3, ("fsqueue", "torch", "transformers", "tokenizers"), True
    ),
}


class Tokenizer(Protocol):
    """Turns the letters of a sequence into token ids."""

    edges: tuple[int, int]
    """How many tokens the encoder adds before and after them."""
    prefix_tokens: int
    """How many ids at the beginning of each window are those of the convention's prefix."""
    left_out: int
    """How many of those are not pooled."""

    def read(self, letters: bytes) -> tuple[Sized, int]:
        """Return the token ids, without begin and end, and how many letters are unknown."""

    uninformative: bytes
    """Letters that stand for any other: a sequence of nothing else has a meaningless vector."""

    def count_unknown(self, letters: bytes) -> int | None:
        """Return how many letters are unknown; None if that takes reading them."""

    def windows(
        self, sequences: Sequence[bytes], how: Windows, *, first_only: bool
    ) -> Iterator[tuple[list[Window], bool]]:
        """Yield the windows of each sequence that fit into the model, none of an empty one; with
        `first_only` the first window, and whether there are others."""


def load_tokenizer(family: str, folder: str, convention: Convention = PLAIN) -> Tokenizer:
    """Load the tokenizer of the model in `folder`; that of ESM-2 needs no files.

    It reads every input after the convention's prefix. Raises ClaimImpossible if it cannot be read.
    """
    if family == "auto":
        from embed.models.generic.tokenizer import GenericTokenizer

        return GenericTokenizer(folder, convention.prefix, pools_prefix=convention.pools_prefix)
    if family == "dnabert":
        from embed.models.dnabert.tokenizer import DnaTokenizer

        return DnaTokenizer(folder)
    from embed.models.esm2.tokenizer import EsmTokenizer

    return EsmTokenizer()


def load(
    family: str, folder: str, dtype: str, place: Any, adapter: str = ""
) -> tuple[Any, Tokenizer]:
    """Load the encoder of the model in `folder` to a `streamed.Place`, and its tokenizer.

    With the folder of an adapter, that is merged. Raises ClaimImpossible if files that the model
    needs are missing, or the adapter is not one of this model.
    """
    if family == "auto":
        from embed.models.generic import network as generic
        from embed.models.generic.tokenizer import GenericTokenizer

        tokenizer = GenericTokenizer(folder)
        return generic.load(folder, dtype, place, tokenizer.frame, adapter), tokenizer
    if family == "dnabert":
        from embed.models.dnabert import network as dnabert

        return dnabert.load(folder, dtype, place), load_tokenizer(family, folder)
    from embed.models.esm2 import network as esm2

    return esm2.load(folder, dtype, place, adapter), load_tokenizer(family, folder)


def load_pooler(
    convention: Convention, family: str, folder: str, tokenizer: Tokenizer, device: Any
) -> Pooler:
    """Load what pools the states of the model in `folder` as the convention says.

    `tokenizer` may be one without the convention's prefix. Raises ClaimImpossible if a module that
    follows pooling cannot be loaded, or is not the planned one.
    """
    from embed.models.conventions.head import load_head
    from embed.models.conventions.pooling import Pooler

    if convention.prefix:
        tokenizer = load_tokenizer(family, folder, convention)
    head = load_head(folder, convention.head, device)
    return Pooler(convention, tokenizer.edges, prefix_tokens=tokenizer.prefix_tokens, head=head)

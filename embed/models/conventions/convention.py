"""Say what "the embedding" of a model is: which layers, which tokens, and what follows.

A model's users agree on it, and rarely on the same as another model's: residues without the special
tokens (ESM, ProtT5), the first token (BGE), the last one (Qwen3-Embedding), normalised or not. A
plan pins it, so that a result does not depend on the version that computes it.

What this module does not know: torch, models, and how a convention is found (`practice.py`,
`modules_json.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fsqueue import UsageError


class Mode(StrEnum):
    """How the states of a sequence's tokens become a vector."""

    MEAN = "mean"
    """Over the sequence's own tokens: special ones, and those of a prefix, are left out."""
    MEAN_ALL = "mean-all"
    CLS = "cls"
    MAX = "max"
    """Over the sequence's own tokens."""
    MAX_ALL = "max-all"
    LAST = "last"
    """The last token, special or not."""
    PER_TOKEN = "per-token"
    """No vector, but a row for each of the sequence's own tokens."""
    MEAN_SQRT_LENGTH = "mean-sqrt-length"
    """The sum over all tokens, divided by the square root of their number."""
    WEIGHTED_MEAN = "weighted-mean"
    """Over all tokens, the n-th with weight n."""


WORDS: Final = {
    Mode.MEAN: "mean, special tokens left out",
    Mode.MEAN_ALL: "mean over all tokens, special ones included",
    Mode.CLS: "CLS",
    Mode.MAX: "maximum, special tokens left out",
    Mode.MAX_ALL: "maximum over all tokens, special ones included",
    Mode.LAST: "last token",
    Mode.PER_TOKEN: "a row for each token, special ones left out",
    Mode.MEAN_SQRT_LENGTH: "sum over all tokens / square root of their number",
    Mode.WEIGHTED_MEAN: "mean over all tokens, weighted by position",
}
LAYER: Final = re.compile(r"(-?\d+)(?:\.\.(-?\d+))?")


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers' states are pooled: 0 is the embeddings, n the output of the n-th layer."""

    numbers: tuple[int, ...] = ()
    """Empty: the last layer, after its final normalisation."""
    averaged: bool = False
    """Whether the layers' states are averaged; otherwise they are concatenated."""

    @property
    def parts(self) -> int:
        """Return how many layers' states lie side by side."""
        return 1 if self.averaged else len(self.numbers) or 1

    @classmethod
    def parse(cls, text: str, last: int) -> Layers:
        """Return the layers that --layers names, of a model with `last` layers.

        Numbers and ranges (`a..b`), separated by commas; negative ones count from the end; `mean:`
        before them averages. Raises UsageError.
        """
        averaged = text.startswith("mean:")
        numbers: list[int] = []
        for word in text.removeprefix("mean:").split(","):
            match = LAYER.fullmatch(word.strip())
            if match is None:
                raise UsageError(
                    f"--layers {text}: {word.strip()!r} is neither a number nor a range. Examples: "
                    f"--layers 0,6,-1 (concatenated), --layers mean:-4..-1 (averaged)."
                )
            ends = [int(each) for each in match.groups() if each is not None]
            first, final = (n + last + 1 if n < 0 else n for n in (ends[0], ends[-1]))
            if not (0 <= first <= last and first <= final <= last):
                raise UsageError(
                    f"--layers {text}: {word.strip()} is not among the model's layers, 0 (the "
                    f"embeddings) to {last}."
                )
            numbers += range(first, final + 1)
        chosen = cls(tuple(numbers), averaged and len(numbers) > 1)
        return cls() if chosen.numbers == (last,) else chosen

    def __str__(self) -> str:
        listed = ",".join(map(str, self.numbers))
        return f"mean:{listed}" if self.averaged else listed


LAST: Final = Layers()


@dataclass(frozen=True, slots=True)
class HeadModule:
    """A module after pooling: its kind, its folder, the hash of its files, its output's width."""

    kind: str
    path: str
    digest: str
    width: int


@dataclass(frozen=True, slots=True)
class Convention:
    """What becomes of a model's hidden states."""

    modes: tuple[Mode, ...] = (Mode.MEAN,)
    """Several are concatenated, in this order."""
    layers: Layers = LAST
    head: tuple[HeadModule, ...] = ()
    """What follows pooling: sentence-transformers' Dense and LayerNorm modules."""
    normalize: bool = False
    prefix: str = ""
    """Text before every input."""
    pools_prefix: bool = True
    """Whether the tokens of a text's prefix are pooled, too."""
    dimensions: int = 0
    """How many of the first numbers are kept, after all else; 0: all."""

    @property
    def per_token(self) -> bool:
        """Return whether every token has a row."""
        return self.modes == (Mode.PER_TOKEN,)

    @property
    def takes_maximum(self) -> bool:
        """Return whether of two windows' vectors the larger numbers are those of both together."""
        return {*self.modes} <= {Mode.MAX, Mode.MAX_ALL} and not (self.head or self.normalize)

    @property
    def name(self) -> str:
        """Return its short name, the value of the option and the metadata `pooling`."""
        return "+".join(self.modes)

    def width(self, model_width: int) -> int:
        """Return how many numbers a row has, of a model whose states have `model_width`."""
        width = model_width * self.layers.parts * len(self.modes)
        width = self.head[-1].width if self.head else width
        return min(width, self.dimensions or width)

    def describe(self) -> str:
        """Return it in words: "CLS, normalised"."""
        return ", ".join(self._words())

    def _words(self) -> Iterator[str]:
        yield " + ".join(WORDS[mode] for mode in self.modes)
        if self.layers.numbers:
            how = "averaged" if self.layers.averaged else "concatenated"
            many = len(self.layers.numbers) > 1
            listed = ",".join(map(str, self.layers.numbers))
            yield f"layers {listed} {how}" if many else f"layer {listed}"
        yield from (f"{module.kind} to {module.width:,}" for module in self.head)
        if self.normalize:
            yield "normalised"
        if self.dimensions:
            yield f"the first {self.dimensions:,} numbers"
        if self.prefix:
            yield f"prefix {self.prefix!r}"

    def encode(self) -> dict[str, Any]:
        """Return it as JSON."""
        facts: dict[str, Any] = {
            "modes": [str(mode) for mode in self.modes],
            "layers": str(self.layers),
            "head": [[m.kind, m.path, m.digest, m.width] for m in self.head],
            "normalize": self.normalize,
            "prefix": self.prefix,
            "pools_prefix": self.pools_prefix,
        }
        return facts | ({"dimensions": self.dimensions} if self.dimensions else {})

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> Convention:
        """Return the convention that `encode` wrote."""
        text = data["layers"]
        numbers = tuple(int(n) for n in text.removeprefix("mean:").split(",") if n)
        return cls(
            tuple(Mode(name) for name in data["modes"]),
            Layers(numbers, text.startswith("mean:")),
            tuple(HeadModule(*module) for module in data["head"]),
            data["normalize"],
            data["prefix"],
            data["pools_prefix"],
            data.get("dimensions", 0),
        )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Convention:
        """Return the convention of a plan's options.

        Plans of ESM-2 and DNABERT, and all those made before there were conventions, have only the
        name of a mode: `legacy`.
        """
        if "convention" in options:
            return cls.decode(options["convention"])
        return cls.legacy(options["pooling"], options.get("family", "esm2"))

    @classmethod
    def legacy(cls, pooling: str, family: str) -> Convention:
        """Return what --pooling alone means: `mean` was over all tokens, except for ESM-2."""
        mode = Mode(pooling)
        if mode is Mode.MEAN and family != "esm2":
            mode = Mode.MEAN_ALL
        return cls((mode,))

    def options(self, family: str) -> dict[str, Any]:
        """Return the options that pin it in a plan.

        Where the name of a mode says it all, there are no others, so that ESM-2 and DNABERT have
        the claims, tables and stores that they had before there were conventions.
        """
        if family != "auto":
            for name in (Mode.MEAN, *self.modes):
                if Convention.legacy(name, family) == self:
                    return {"pooling": str(name)}
        return {"pooling": self.name, "convention": self.encode()}


PLAIN: Final = Convention()

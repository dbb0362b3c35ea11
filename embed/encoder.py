"""Embed sequences from Python, without a pool or files.

    from embed import Encoder
    encoder = Encoder.load("facebook/esm2_t6_8M_UR50D")
    vectors = encoder.encode(["MKVLAAGIVGLC", "MKAY"])  # float32, (2, 320)

Models other than ESM-2 and DNABERT take texts as well. The options, what is refused, and the
vectors are those of `fsqueue plan embed`; what a plan prints and an output counts is given to
`warnings`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.engine import devices, float32_fallback
from embed.engine.assembly import Assembly
from embed.engine.batching import batches
from embed.engine.float32_fallback import Float32Fallback
from embed.engine.sequence_reader import SequenceReader
from embed.handlers.embed import Embed
from embed.inputs import letter_check
from embed.inputs.fasta import BLANKS, Record
from embed.models import families
from embed.models.conventions.convention import Convention
from embed.models.families import FAMILIES, Tokenizer
from embed.models.published import adapter, hub
from embed.options import OPTIONS
from fsqueue import BadInput, ClaimFailed, ClaimImpossible, UsageError

log = logging.getLogger(__name__)

ACCEPTED: Final = (
    *("dtype", "pooling", "layers", "normalize", "prefix", "prompt"),
    *("long", "max_residues", "overlap", "adapter"),
)
"""The options of `fsqueue plan embed` that say how a sequence becomes a vector."""

Vectors = NDArray[np.float32]


class Encoder:
    """A loaded model. Create it by `Encoder.load`."""

    def __init__(
        self, engine: Float32Fallback, tokenizer: Tokenizer, options: Mapping[str, Any]
    ) -> None:
        """`options` are those of a plan, prepared."""
        self._engine, self._tokenizer, self._options = engine, tokenizer, options
        self.convention = Convention.of(options)

    @classmethod
    def load(cls, model: str, **options: Any) -> Encoder:
        """Load a model by its folder or hub id, onto the first visible GPU or else the CPU.

        The options are those of `fsqueue plan embed`: dtype="float32", pooling, layers, normalize,
        prefix, prompt, long, max_residues, overlap, adapter. Raises UsageError, with what to type.
        """
        for name in options:
            if name not in ACCEPTED:
                raise UsageError(f"Encoder.load has no option {name!r}; it has {_list(ACCEPTED)}.")
        return cls.from_options(model, options)

    @classmethod
    def from_options(cls, model: str, options: Mapping[str, Any]) -> Encoder:
        """Load a model as `load` does; the options may also pin a convention, as a store's do."""
        chosen = {option.name: option.default for option in OPTIONS} | {"model": model, **options}
        _check(chosen)
        prepared = Embed().pin(chosen)
        if prepared["family"] == "auto":
            for note in prepared["plan_notes"][1:]:
                warnings.warn(note, UserWarning, stacklevel=3)
        convention = Convention.of(prepared)
        folder = hub.locate(prepared)
        loaded, tokenizer = float32_fallback.load(
            prepared["family"],
            folder,
            devices.choose_device(log.warning),
            dtype=prepared["dtype"],
            convention=convention,
            adapter=adapter.locate(prepared),
        )
        if convention.prefix:
            tokenizer = families.load_tokenizer(prepared["family"], folder, convention)
        return cls(loaded, tokenizer, prepared)

    @property
    def width(self) -> int:
        """Return how many numbers a vector has."""
        return self._engine.width

    def encode(self, sequences: Sequence[str], *, tokens_per_batch: int = 4096) -> Vectors:
        """Return the vectors of sequences, float32 of shape (sequences, width), in their order.

        The vector of an empty sequence is zeros. Sequences that were truncated, read in windows, or
        have unknown letters are counted in a warning. Raises UsageError for anything but a sequence
        of str, and for one longer than `max_residues` if `long` is `fail`; ClaimFailed if a vector
        is not finite.
        """
        if self.convention.per_token:
            raise UsageError(
                "this encoder was loaded with pooling='per-token', and has a row for each token, "
                "not for each sequence. Call encode_tokens."
            )
        return self._encode(sequences, tokens_per_batch)[0]

    def encode_tokens(
        self, sequences: Sequence[str], *, tokens_per_batch: int = 4096
    ) -> list[Vectors]:
        """Return an array (tokens, width) for each sequence: a row for each of its own tokens.

        Only an encoder that was loaded with pooling="per-token" can. Raises as `encode` does.
        """
        if not self.convention.per_token:
            raise UsageError(
                "this encoder gives one vector for each sequence. For a row for each token: "
                "Encoder.load(..., pooling='per-token')."
            )
        rows, offsets = self._encode(sequences, tokens_per_batch)
        return np.split(rows, offsets[1:-1]) if len(offsets) > 1 else []

    def _refuse_wrong_letters(self, records: Sequence[Record]) -> None:
        kind = letter_check.reads(self._options["family"], self._tokenizer)
        try:
            list(letter_check.check("sequences", records, self._tokenizer, kind, are_all=True))
        except BadInput as error:
            raise UsageError(str(error)) from error

    def _encode(
        self, sequences: Sequence[str], tokens_per_batch: int
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Return all rows, and the offsets that divide them into sequences."""
        inputs = [text.encode() for text in _checked(sequences)]
        if type(tokens_per_batch) is not int or tokens_per_batch < 1:
            raise UsageError(f"tokens_per_batch is 1 or more, not {tokens_per_batch!r}.")
        if not FAMILIES[self._options["family"]].in_tokens:
            inputs = [each.translate(None, BLANKS).rstrip(b"*") for each in inputs]
        records = [Record(f"sequence {n}", each) for n, each in enumerate(inputs)]
        self._refuse_wrong_letters(records)
        reader = SequenceReader(records, self._tokenizer, self._options)
        assembly = Assembly(len(inputs), self.width, self.convention)
        try:
            with closing(batches(reader, tokens_per_batch)) as read:
                for batch, rows in self._engine.run(read, log.warning):
                    sizes = [one.rows if assembly.ragged else 1 for one in batch]
                    parts = np.split(rows, np.cumsum(sizes)[:-1])
                    for one, part in zip(batch, parts, strict=True):
                        own = part[slice(*one.own)] if assembly.ragged else part
                        assembly.add(one.row, own, window=one.window, share=one.share)
        except ClaimImpossible as error:
            raise UsageError(str(error)) from error
        vectors, columns = assembly.finish()
        offsets = columns.get("offsets", np.arange(len(vectors) + 1))
        _refuse_infinite(vectors, offsets)
        for line in reader.counts().warnings():
            warnings.warn(line, UserWarning, stacklevel=3)
        return vectors, offsets


def _check(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a value that the command line would refuse, too."""
    for option in OPTIONS:
        value = options[option.name]
        if option.choices and value not in (option.default, *option.choices):
            raise UsageError(f"{option.name} is one of {_list(option.choices)}, not {value!r}.")
        if type(option.default) is int and (type(value) is not int or value < 0):
            raise UsageError(f"{option.name} is a number, 0 or more, not {value!r}.")
        if option.switch and value not in (None, True, False):
            raise UsageError(f"{option.name} is True, False or None, not {value!r}.")


def _checked(sequences: Sequence[str]) -> Sequence[str]:
    if isinstance(sequences, str | bytes):
        raise UsageError(
            "encode takes a list of sequences, and was given one string, whose letters would be "
            "sequences. Write encode([text])."
        )
    for number, each in enumerate(sequences):
        if not isinstance(each, str):
            raise UsageError(f"sequence {number} is a {type(each).__name__}, not a str.")
    return sequences


def _refuse_infinite(vectors: Vectors, offsets: NDArray[Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        are = "1 vector is" if len(bad) == 1 else f"{len(bad):,} vectors are"
        first = int(np.searchsorted(offsets, bad[0], "right")) - 1
        raise ClaimFailed(
            f"{are} not finite, even in float32, the first of sequence {first}; the model's "
            f"weights or the device are faulty. Fetch the model again."
        )


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)

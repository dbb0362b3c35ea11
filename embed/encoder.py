"""Embed sequences from Python, without a pool or files.

    from embed import Encoder
    encoder = Encoder.load("facebook/esm2_t6_8M_UR50D")
    vectors = encoder.encode(["MKVLAAGIVGLC", "MKAY"])  # float32, (2, 320)

Models other than ESM-2 and DNABERT take texts as well. The vectors are those that a pool computes;
see `models/pooling.py` for what is averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.engine import device, float32_fallback
from embed.engine.assembly import Assembly
from embed.engine.batching import batches
from embed.engine.float32_fallback import Float32Fallback
from embed.engine.sequence_reader import SequenceReader
from embed.inputs.fasta import BLANKS, Record
from embed.models import hub
from embed.models.convention import Convention
from embed.models.families import FAMILIES, Tokenizer
from embed.models.generic.shape import refuse_too_long
from fsqueue import ClaimFailed, ClaimImpossible, UsageError

log = logging.getLogger(__name__)

POOLINGS: Final = ("mean", "cls", "max")
"""Those that give one vector for each sequence."""


@dataclass(frozen=True, slots=True)
class _Settings:
    pooling: str
    long: str
    max_residues: int
    keeps_blanks: bool
    """Whether blanks and a final `*` are part of the input, as in a text."""


class Encoder:
    """A loaded model. Create it by `Encoder.load`."""

    def __init__(self, engine: Float32Fallback, tokenizer: Tokenizer, settings: _Settings) -> None:
        self._engine, self._tokenizer, self._settings = engine, tokenizer, settings

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "float32",
        pooling: str = "mean",
        long: str | None = None,
        max_residues: int = 0,
    ) -> Encoder:
        """Load a model by its folder or hub id, onto the first visible GPU or else the CPU.

        The options are those of `fsqueue plan embed`. Raises UsageError, with what to type.
        """
        if pooling not in POOLINGS:
            raise UsageError(f"pooling {pooling!r}: must be one of {', '.join(POOLINGS)}.")
        found = hub.find(model)
        family = FAMILIES[found.family]
        if family.in_tokens and max_residues:
            refuse_too_long(found.folder, max_residues, "max_residues")
        here = device.choose_device(log.warning)
        loaded, tokenizer = float32_fallback.load(
            family.name,
            found.folder,
            here,
            dtype=dtype,
            convention=Convention.legacy(pooling, family.name),
        )
        settings = _Settings(
            pooling=pooling,
            long=long or family.long,
            max_residues=max_residues or found.longest or family.residues_max,
            keeps_blanks=family.in_tokens,
        )
        return cls(loaded, tokenizer, settings)

    @property
    def width(self) -> int:
        """Return how many numbers a vector has."""
        return self._engine.width

    def encode(
        self, sequences: Sequence[str], *, tokens_per_batch: int = 4096
    ) -> NDArray[np.float32]:
        """Return the vectors of sequences, float32 of shape (sequences, width), in their order.

        The vector of an empty sequence is zeros. Raises UsageError for a sequence longer than
        `max_residues` if `long` is `fail`, ClaimFailed if a vector is not finite.
        """
        settings = self._settings
        inputs = [text.encode() for text in sequences]
        if not settings.keeps_blanks:
            inputs = [each.translate(None, BLANKS).rstrip(b"*") for each in inputs]
        records = (Record(f"sequence {n}", each) for n, each in enumerate(inputs))
        reader = SequenceReader(records, self._tokenizer, settings.max_residues, long=settings.long)
        assembly = Assembly(len(inputs), self.width, settings.pooling)
        try:
            found = self._engine.run(batches(reader, tokens_per_batch), log.warning)
            for batch, rows in found:
                for one, row in zip(batch, rows, strict=True):
                    assembly.add(one.row, row[None], window=one.window, share=one.share)
        except ClaimImpossible as error:
            raise UsageError(str(error)) from error
        vectors, _ = assembly.finish()
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            are = "1 vector is" if len(bad) == 1 else f"{len(bad):,} vectors are"
            raise ClaimFailed(
                f"{are} not finite, even in float32, the first of sequence {bad[0]}; the model's "
                f"weights or the device are faulty. Fetch the model again."
            )
        return vectors

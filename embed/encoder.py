"""Embed sequences from Python: no pool, no files.

    from embed import Encoder
    encoder = Encoder.load("facebook/esm2_t6_8M_UR50D")
    vectors = encoder.encode(["MKVLAAGIVGLC", "MKAY"])  # float32, (2, 320)

Of a model that transformers has, other than ESM-2 and DNABERT, they may be texts as well.
The numbers are those that a pool gives; see `pooling.py` for what is averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.engine import engine, non_finite
from embed.engine.assembly import Assembly
from embed.engine.batching import batches
from embed.engine.non_finite import Float32Fallback
from embed.engine.tokenizing import Reading
from embed.inputs.fasta import BLANKS, Record
from embed.models import hub
from embed.models.families import FAMILIES, Tokens
from fsqueue import ClaimFailed, ClaimImpossible, UsageError

log = logging.getLogger(__name__)

POOLINGS: Final = ("mean", "cls", "max")
"""Those that give a vector for each sequence."""


class Encoder:
    """A loaded model."""

    def __init__(self, engine: Float32Fallback, tokens: Tokens, how: dict[str, Any]) -> None:
        self._engine, self._tokens, self._how = engine, tokens, how

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

        The options are those of `fsqueue plan embed`. Raises UsageError, saying what to type.
        """
        if pooling not in POOLINGS:
            raise UsageError(f"pooling {pooling!r}: must be one of {', '.join(POOLINGS)}.")
        found = hub.find(model)
        family = FAMILIES[found.family]
        device = engine.choose_device(log.warning)
        mended, tokens = non_finite.load(
            family.name, found.folder, device, dtype=dtype, pool=pooling
        )
        how = {
            "pooling": pooling,
            "long": long or family.long,
            "max_residues": max_residues or found.longest or family.residues_max,
            "is_text": family.in_tokens,
        }
        return cls(mended, tokens, how)

    @property
    def width(self) -> int:
        """Return how many numbers a vector has."""
        return self._engine.width

    def encode(
        self, sequences: Sequence[str], *, tokens_per_batch: int = 4096
    ) -> NDArray[np.float32]:
        """Return the vectors of sequences, float32 of shape (sequences, width), in their order.

        An empty sequence has zeros. Raises UsageError for a longer one than `max_residues` where
        `long` is `fail`, ClaimFailed if a vector is not finite.
        """
        how = self._how
        letters = [text.encode() for text in sequences]
        if not how["is_text"]:
            letters = [each.translate(None, BLANKS).rstrip(b"*") for each in letters]
        records = (Record(f"sequence {n}", each) for n, each in enumerate(letters))
        reading = Reading(records, self._tokens, how["max_residues"], long=how["long"])
        assembly = Assembly(len(letters), self.width, how["pooling"])
        try:
            for batch in batches(reading, tokens_per_batch):
                rows = self._engine.embed(batch, log.warning)
                for one, row in zip(batch, rows, strict=True):
                    assembly.add(one.row, row[None], window=one.window, share=one.share)
        except ClaimImpossible as error:
            raise UsageError(str(error)) from error
        vectors, _ = assembly.finish()
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise ClaimFailed(
                f"{len(bad)} vectors are not finite, even in float32, that of sequence {bad[0]} "
                f"first; the model's weights or the device are faulty. Fetch the model again."
            )
        return vectors

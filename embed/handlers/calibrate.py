"""Measure what this machine really does with a model, in less than a minute.

A weight is a speed beside an RTX 3090. The table's are estimates over all kinds of work; this one
is measured with the work that will be done. It is printed, and never used unless somebody types it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embed.engine.batching import Tokenized
from embed.engine.model_cache import device_name
from embed.handlers.embed import Embed
from embed.models.cost import PER_SECOND, estimate
from embed.models.families import FAMILIES

log = logging.getLogger(__name__)

LETTERS: Final = {"esm2": "ACDEFGHIKLMNPQRSTVWY", "dnabert": "ACGT", "auto": "ACGT"}
"""What other encoders read is not known; these are bases, residues and letters."""
LENGTHS: Final = {"esm2": (100, 500), "dnabert": (200, 1000), "auto": (100, 500)}
FIRST_LETTERS: Final = 60
"""The first batch is one such sequence: with a large model on a slow CPU, that alone takes long."""
BATCH_S: Final = 8.0
"""No batch should take longer."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, and what follows from it."""

    model: str
    dtype: str
    device: str
    seconds: float
    load_seconds: float
    sequences: int
    residues: int
    cost: int

    @property
    def weight(self) -> float:
        """Return the speed beside an RTX 3090, to two digits: there are no more in it."""
        return float(f"{max(self.cost / self.seconds / PER_SECOND, 1e-6):.2g}")


def calibrate(options: dict[str, Any], seconds: float) -> Calibration:
    """Run batches for about so long on the first visible GPU, or the CPU. Raises as `run` does."""
    handler = Embed()
    handler.name = "embed"
    options = handler.prepare(options)
    begun = time.monotonic()
    engine, tokens = handler.engine(options, log.warning)
    load_seconds = time.monotonic() - begun
    _timed(engine, [Tokenized(0, tokens.read(b"ACGT" * 3)[0])])  # the first call is always slow
    costs, source = estimate(options).costs, _sequences(options)
    counts, spent, letters_max = np.zeros(3, np.int64), 0.0, FIRST_LETTERS
    while spent < seconds:
        batch = list(_batch(source, letters_max))
        lengths = np.array([len(letters) for letters in batch])
        read = (next(tokens.windows(letters, options["max_residues"])) for letters in batch)
        took = _timed(engine, [Tokenized(0, ids) for ids, _, _ in read])
        if took < BATCH_S / 8 and letters_max < options["tokens_per_batch"]:
            letters_max *= 4  # a machine this fast is told nothing by so small a batch
            continue
        counts += (len(batch), lengths.sum(), costs(lengths).sum())
        spent += took
    handler.close()
    sequences, residues, cost = counts.tolist()
    return Calibration(
        model=options["model"],
        dtype=options["dtype"],
        device=device_name(),
        seconds=spent,
        load_seconds=load_seconds,
        sequences=sequences,
        residues=residues,
        cost=cost,
    )


def _timed(engine: Any, batch: Sequence[Tokenized]) -> float:
    begun = time.monotonic()
    engine.embed(batch, log.warning)  # its rows are on the CPU when it returns
    return max(time.monotonic() - begun, 1e-6)


def _batch(source: Iterator[bytes], letters_max: int) -> Iterator[bytes]:
    """Yield sequences of so many letters together, one at least; a first one is cut to them."""
    letters = 0
    while letters < letters_max:
        sequence = next(source)[:letters_max]
        letters += len(sequence)
        yield sequence


def _sequences(options: Mapping[str, Any]) -> Iterator[bytes]:
    chance, family = random.Random(1), options["family"]
    letters = LETTERS[FAMILIES[family].name]
    while True:
        length = min(chance.randint(*LENGTHS[family]), options["max_residues"])
        yield "".join(chance.choices(letters, k=length)).encode()

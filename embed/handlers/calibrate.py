"""Measure this machine's speed with a model, in less than a minute.

A weight is a speed relative to an RTX 3090. Those of fsqueue's table are estimates for all kinds of
work; this one is measured with the actual model. It is printed, and only used if given as --weight.
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
from embed.handlers.embed import Embed
from embed.models.cost import PER_SECOND, estimate
from embed.models.families import FAMILIES
from embed.models.windows import Windows

log = logging.getLogger(__name__)

LETTERS: Final = {"esm2": "ACDEFGHIKLMNPQRSTVWY", "dnabert": "ACGT", "auto": "ACGT"}
"""What other encoders read is unknown; these letters are bases and residues alike."""
LENGTHS: Final = {"esm2": (100, 500), "dnabert": (200, 1000), "auto": (100, 500)}
FIRST_LETTERS: Final = 60
"""The first batch is one such sequence; with a large model on a slow CPU that alone takes long."""
BATCH_S: Final = 8.0
"""The longest that a batch should take."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measurement; `weight` follows from it."""

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
        """Return the speed relative to an RTX 3090, to the two digits that are significant."""
        return float(f"{max(self.cost / self.seconds / PER_SECOND, 1e-6):.2g}")


def calibrate(options: dict[str, Any], seconds: float) -> Calibration:
    """Run batches for about `seconds` on the first visible GPU, or the CPU.

    Raises as `Handler.run` does.
    """
    handler = Embed()
    options = handler.prepare(options)
    begun = time.monotonic()
    engine, tokenizer = handler.engine(options, log.warning)
    load_seconds = time.monotonic() - begun
    _time_batch(engine, [Tokenized(0, tokenizer.read(b"ACGT" * 3)[0])])  # the first call is slow
    costs, source = estimate(options).costs, _sequences(options)
    counts, spent, letters_max = np.zeros(3, np.int64), 0.0, FIRST_LETTERS
    while spent < seconds:
        batch = list(_batch(source, letters_max))
        lengths = np.array([len(letters) for letters in batch])
        read = (next(tokenizer.windows(letters, Windows.of(options))) for letters in batch)
        batch_s = _time_batch(engine, [Tokenized(0, window.ids) for window in read])
        if batch_s < BATCH_S / 8 and letters_max < options["tokens_per_batch"]:
            letters_max *= 4  # too small a batch to measure so fast a machine
            continue
        counts += (len(batch), lengths.sum(), costs(lengths).sum())
        spent += batch_s
    name = handler.device_name()
    handler.close()
    sequences, residues, cost = counts.tolist()
    return Calibration(
        model=options["model"],
        dtype=options["dtype"],
        device=name,
        seconds=spent,
        load_seconds=load_seconds,
        sequences=sequences,
        residues=residues,
        cost=cost,
    )


def _time_batch(engine: Any, batch: Sequence[Tokenized]) -> float:
    begun = time.monotonic()
    engine.embed(batch, log.warning)  # when it returns, the rows are on the CPU
    return max(time.monotonic() - begun, 1e-6)


def _batch(source: Iterator[bytes], letters_max: int) -> Iterator[bytes]:
    """Yield sequences of about `letters_max` letters in total, none longer than that."""
    letters = 0
    while letters < letters_max:
        sequence = next(source)[:letters_max]
        letters += len(sequence)
        yield sequence


def _sequences(options: Mapping[str, Any]) -> Iterator[bytes]:
    rng, family = random.Random(1), options["family"]
    letters = LETTERS[FAMILIES[family].name]
    while True:
        length = min(rng.randint(*LENGTHS[family]), options["max_residues"])
        yield "".join(rng.choices(letters, k=length)).encode()

"""Compute sequences again in float32 whose vectors overflowed in half precision.

float16 ends at 65,504, and a larger state becomes infinite. The sequence it belongs to is then run
again, alone and in float32, so its vector depends neither on its neighbours nor on what earlier
owners of the claim did. For that the model is loaded a second time, once and only if needed; on
the CPU if the card has no room for it.

What this module does not know: why a vector is not finite. The callers refuse those that still are
not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.engine.budget import Budget
from embed.engine.device import Cpu, Device
from embed.engine.device_errors import is_out_of_memory, typed_errors
from embed.engine.engine import Batch, Engine, Warn
from embed.engine.scorer import load_scorer
from embed.engine.usage import Usage
from embed.models import families
from embed.models.convention import Convention
from embed.models.cost import ModelShape
from embed.models.families import Tokenizer
from embed.models.masked_lm import Scores
from fsqueue import Computing, host_lock

log = logging.getLogger(__name__)

SINGLE: Final = ("float32", "tf32")
"""Precisions in which nothing overflows that float32 could hold."""

Rows = NDArray[np.float32]


def load(
    family: str,
    folder: str,
    device: Device,
    *,
    dtype: str,
    convention: Convention,
    adapter: str = "",
) -> tuple[Float32Fallback, Tokenizer]:
    """Load a model as `families.load` does, and pool its states as the convention says."""
    device.check(dtype, log.warning)
    with typed_errors():
        encoder, tokenizer = families.load(family, folder, dtype, device.place, adapter)
    engine = with_float32_fallback(
        encoder, tokenizer, family, folder, device, dtype=dtype, convention=convention,
        adapter=adapter,
    )  # fmt: skip
    return engine, tokenizer


def with_float32_fallback(
    encoder: Any, tokenizer: Tokenizer, family: str, folder: str, device: Device, *,
    dtype: str, convention: Convention, budget: Budget | None = None,
    scores: Scores | None = None, adapter: str = "",
) -> Float32Fallback:  # fmt: skip
    """Return the engine of a loaded model, which can load the model again in float32."""

    def engine(
        encoder: Any, device: Device, budget: Budget | None = None, *, tf32: bool = False
    ) -> Engine:
        pooler = families.load_pooler(convention, family, folder, tokenizer, device.place)
        scorer = None
        if scores is not None:
            scorer = load_scorer(
                family, folder, tokenizer, convention, encoder.frame.vocabulary, scores, device
            )
        return Engine(encoder, pooler, device, budget, scorer, tf32=tf32)

    def load_on(device: Device) -> Engine:
        with host_lock("load"), typed_errors():
            again, _ = families.load(family, folder, "float32", device.place, adapter)
            return engine(again, device)

    def load_float32() -> Engine:
        try:
            return load_on(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or device.capability is None:
                raise
        log.warning("the model in float32 does not fit beside the other; using the CPU for it")
        device.release()
        return load_on(Cpu())

    first = engine(encoder, device, budget, tf32=dtype == "tf32")
    return Float32Fallback(first, None if dtype in SINGLE else load_float32)


class Float32Fallback:
    """An engine that repeats in float32 what overflowed."""

    def __init__(self, engine: Engine, load_float32: Callable[[], Engine] | None) -> None:
        """`load_float32` is None for an engine that is in float32 already."""
        self._engine, self._load_float32 = engine, load_float32
        self._float32_engine: Engine | None = None

    @property
    def width(self) -> int:
        return self._engine.width

    def take_usage(self) -> Usage:
        """Return what became of the time since the last call."""
        return self._engine.take_usage()

    def computing(self, usage: Usage, shape: ModelShape, dtype: str) -> Computing:
        """Return it beside what this device could have done in that time."""
        return self._engine.computing(usage, shape, dtype)

    def provenance(self) -> dict[str, str]:
        """Return the device and the attention kernel; nothing for a CPU, where all do the same."""
        return self._engine.provenance()

    def embed(self, batch: Batch, warn: Warn) -> Rows:
        """Return the sequences' rows as `Engine.embed` does; raises the same."""
        return self._repaired(batch, self._engine.embed(batch, warn), warn)

    def run(self, batches: Iterable[Batch], warn: Warn) -> Iterator[tuple[Batch, Rows]]:
        """Yield batches with their rows as `Engine.run` does; raises the same."""
        for batch, rows in self._engine.run(batches, warn):
            yield batch, self._repaired(batch, rows, warn)

    def _repaired(self, batch: Batch, rows: Rows, warn: Warn) -> Rows:
        bad = ~np.isfinite(rows).all(axis=1)
        if self._load_float32 is None or not bad.any():
            return rows
        edges = np.cumsum([one.rows if self._engine.per_token else 1 for one in batch])[:-1]
        overflowed = [part.any() for part in np.split(bad, edges)]
        count = sum(overflowed)
        vectors = "1 vector" if count == 1 else f"{count} vectors"
        warn(f"{vectors} overflowed in half precision; computing in float32 instead")
        if self._float32_engine is None:
            self._float32_engine = self._load_float32()
        parts = np.split(rows, edges)
        for number, one in enumerate(batch):
            if overflowed[number]:
                parts[number] = self._float32_engine.embed([one], warn)
        return np.concatenate(parts)

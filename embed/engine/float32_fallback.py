"""Compute sequences again in float32 whose vectors overflowed in half precision.

float16 ends at 65,504, and a larger state becomes infinite. The sequence it belongs to is then run
again, alone and in float32, so its vector depends neither on its neighbours nor on what earlier
owners of the claim did. For that the model is loaded a second time, once and only if needed, into
the host's memory. On a GPU each of its layers is copied to the device when it is its turn, computes
all sequences of a batch that overflowed, one after the other, and is dropped: so the device holds
one layer in float32 beside the model, and nothing after the batch. What does not fit even so is
computed on the CPU.

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
from embed.engine.engine import Batch, Engine, TooLong, Warn
from embed.engine.parity import check_parity
from embed.engine.scorer import load_scorer
from embed.engine.usage import Usage
from embed.models import families
from embed.models.conventions.convention import Convention
from embed.models.cost import ModelShape
from embed.models.families import Tokenizer
from embed.models.packed.streamed import NotStreamed, Place, Streamed
from embed.models.scores.masked_lm import Scores
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
    scores: Scores | None = None, adapter: str = "", again: dict[Place, Any] | None = None,
) -> Float32Fallback:  # fmt: skip
    """Return the engine of a loaded model, which can load the model again in float32.

    `again` holds what was loaded again, by its place, for all engines of the model.
    """
    found: dict[Place, Any] = {} if again is None else again

    def engine(
        encoder: Any, device: Device, budget: Budget | None = None, *, apart: bool = False
    ) -> Engine:
        pooler = families.load_pooler(convention, family, folder, tokenizer, device.place)
        scorer = None
        if scores is not None:
            scorer = load_scorer(
                family, folder, tokenizer, convention, encoder.frame.vocabulary, scores, device
            )
        return Engine(encoder, pooler, device, budget, scorer, tf32=dtype == "tf32", apart=apart)

    def load_on(device: Device, place: Place) -> Engine:
        with host_lock("load"), typed_errors():
            if place not in found:
                found[place], _ = families.load(family, folder, "float32", place, adapter)
            if isinstance(place, Streamed):
                return first.of_other_encoder(found[place])
            return engine(found[place], device, apart=True)

    def load_float32() -> Engine:
        if device.is_cpu:
            return load_on(device, device.place)
        try:
            return load_on(device, Streamed(device.place))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = "there is not enough memory for the model in float32"
        except NotStreamed as error:
            why = str(error)
        log.warning("%s; sequences that overflow are computed on the CPU", why)
        device.release()
        return load_on_cpu()

    def load_on_cpu() -> Engine:
        return load_on(Cpu(), Cpu.place)

    first = engine(encoder, device, budget)
    if not device.is_proven:
        reference, scored = load_on_cpu(), scores is not None
        check_parity(device.name, first, reference, tokenizer, family, dtype, scored=scored)
        del found[Cpu.place]
    if dtype in SINGLE:
        return Float32Fallback(first, None)
    return Float32Fallback(first, load_float32, load_on_cpu)


class Float32Fallback:
    """An engine that repeats in float32 what overflowed."""

    def __init__(
        self,
        engine: Engine,
        load_float32: Callable[[], Engine] | None,
        load_on_cpu: Callable[[], Engine] | None = None,
    ) -> None:
        """`load_float32` is None for an engine that is in float32 already.

        `load_on_cpu` loads what computes a sequence that is too long for the other's memory.
        """
        self._engine, self._load_float32 = engine, load_float32
        self._load_on_cpu = load_on_cpu
        self._float32_engine: Engine | None = None
        self._cpu_engine: Engine | None = None

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
        counts = [one.rows if self._engine.per_token else 1 for one in batch]
        parts = np.split(rows, np.cumsum(counts)[:-1])
        found = np.split(bad, np.cumsum(counts)[:-1])
        numbers = [number for number, part in enumerate(found) if part.any()]
        vectors = "1 vector" if len(numbers) == 1 else f"{len(numbers)} vectors"
        warn(f"{vectors} overflowed in half precision; computing in float32 instead")
        if self._float32_engine is None:
            self._float32_engine = self._load_float32()
        again = self._again(self._float32_engine, [batch[number] for number in numbers], warn)
        edges = np.cumsum([counts[number] for number in numbers])[:-1]
        for number, part in zip(numbers, np.split(again, edges), strict=True):
            parts[number] = part
        return np.concatenate(parts)

    def _again(self, engine: Engine, sequences: Batch, warn: Warn) -> Rows:
        """Return the rows of sequences in float32; the CPU computes those that are too long."""
        try:
            return engine.embed(sequences, warn)
        except TooLong:
            if self._load_on_cpu is None or engine.is_on_cpu:
                raise
        if len(sequences) > 1:  # which of them was too long is not known
            return np.concatenate([self._again(engine, [one], warn) for one in sequences])
        warn(
            f"a sequence of {sequences[0].tokens:,} tokens does not fit into the GPU's memory in "
            f"float32, beside the model; using the CPU for it"
        )
        if self._cpu_engine is None:
            self._cpu_engine = self._load_on_cpu()
        return self._cpu_engine.embed(sequences, warn)

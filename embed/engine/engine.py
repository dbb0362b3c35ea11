"""Run batches on a device, several in flight, and handle its errors.

A batch becomes one launch: one copy up, the model and its pooling, one copy down. While the device
works on it, the next are prepared; results come in the order of the batches. Several small batches
may share a launch (`budget.py`), so what a caller counts and saves need not be what a device likes.

When memory runs out, everything in flight is waited for, the batch is divided, and later ones are
kept as small. What other errors mean is decided in `device_errors.py`.

What this module does not know: which device it has, files, claims and rows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.engine.batching import Tokenized, divide_batch
from embed.engine.budget import Budget
from embed.engine.device import Device, Launch
from embed.engine.device_errors import is_out_of_memory, typed_errors
from embed.engine.scorer import Scorer
from embed.engine.usage import Usage
from embed.models.conventions.pooling import Pooler
from embed.models.cost import ModelShape
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.kernels import Kernel
from embed.models.packed.layout import Layout
from embed.models.packed.pack import Pack
from embed.models.packed.states import States
from fsqueue import ClaimFailed, Computing

PATIENCE: Final = 16
"""Launches after which more tokens are tried again, once memory ran out; four times as many after
every time that it did."""
ALIGNMENT: Final = 16

Rows = NDArray[np.float32]
Batch = Sequence[Tokenized]
Warn = Callable[[str], None]


def use_threads(count: int) -> None:
    """Compute with this many threads on the CPU, whatever the environment says.

    The results depend on it: a matrix product that is divided differently is rounded differently.
    """
    torch.set_num_threads(count)


class TooLong(ClaimFailed):
    """A single sequence does not fit into the device's memory."""


@dataclass(slots=True)
class _Flight:
    """Batches that share a launch; `launch` is None if there was no memory for it."""

    batches: list[Batch]
    launch: Launch | None = None
    buffer: torch.Tensor | None = None
    rows: Rows | None = None

    @property
    def sequences(self) -> list[Tokenized]:
        return [one for batch in self.batches for one in batch]


class Engine:
    """An encoder and its pooling on a device."""

    def __init__(
        self,
        encoder: PackedEncoder,
        pooler: Pooler,
        device: Device,
        budget: Budget | None = None,
        scorer: Scorer | None = None,
        *,
        tf32: bool = False,
        apart: bool = False,
    ) -> None:
        """Without a budget, every batch is a launch. With a scorer, the last number of each row is
        the sequence's score. `apart`: the sequences of a launch are computed one by one, so that
        each gets the bytes that it would get alone. Raises NotSupportedError as `kernel_for`."""
        self._tf32, self._apart = tf32, apart
        self.usage = Usage()
        self._encoder, self._pooler, self._device = encoder, pooler, device
        self._scorer = scorer
        self._budget = budget or Budget()
        self._tokens_max: int | None = None
        self._until_larger = self._patience = PATIENCE
        self._buffers: list[torch.Tensor] = []
        self.kernel: Kernel = encoder.kernel(device.capability)
        """How it attends."""

    def of_other_encoder(self, encoder: PackedEncoder) -> Engine:
        """Return an engine that does the same with another encoder, for sequences one by one.

        It shares what pools and scores, which is in float32 for encoders of all precisions.
        """
        return Engine(encoder, self._pooler, self._device, scorer=self._scorer, apart=True)

    @property
    def is_on_cpu(self) -> bool:
        """Return whether there is no other device to fall back to."""
        return self._device.is_cpu

    def take_usage(self) -> Usage:
        """Return what became of the time since the last call."""
        usage, self.usage = self.usage, Usage()
        return usage

    def computing(self, usage: Usage, shape: ModelShape, dtype: str) -> Computing:
        """Return it beside what this device could have done in that time."""
        return usage.computing(shape, self._device.reach(dtype), self._device.peak_bytes())

    @property
    def width(self) -> int:
        return self._pooler.width(self._encoder.width) + (self._scorer is not None)

    @property
    def per_token(self) -> bool:
        """Return whether a sequence has a row for each token."""
        return self._pooler.convention.per_token

    def provenance(self) -> dict[str, str]:
        """Return the device and the attention kernel; nothing for a CPU, where all do the same."""
        if self._device.is_cpu:
            return {}
        return {"device": self._device.name, "attention": str(self.kernel)}

    def embed(self, batch: Batch, warn: Warn) -> Rows:
        """Return the sequences' rows, in order: one for each, or one for each token.

        Raises as `run` does.
        """
        (found,) = self.run([batch], warn)
        return found[1]

    def run(self, batches: Iterable[Batch], warn: Warn) -> Iterator[tuple[Batch, Rows]]:
        """Yield each batch with its sequences' rows, in order.

        No sequence may be empty. Batches are taken ahead of what is yielded, on a GPU. Raises
        TooLong if a single sequence does not fit into memory, ClaimImpossible for ids that the
        model does not have, and what `device_errors` says of a device's errors.
        """
        flights: deque[_Flight] = deque()
        begun = time.perf_counter()
        for group in self._budget.groups(batches):
            flights.append(self._take_off(group))
            # On a CPU, all is computed by now.
            computed_s = flights[-1].launch.computing_s if flights[-1].launch else 0.0
            self._spend(time.perf_counter() - begun, feeding_less=computed_s)
            while len(flights) >= self._device.ahead or (flights and flights[-1].launch is None):
                yield from self._land(flights, warn)
            begun = time.perf_counter()
        while flights:
            yield from self._land(flights, warn)

    def _spend(self, seconds: float, *, feeding_less: float | None = None) -> None:
        """Count some time; all but `feeding_less` of it went on feeding the device."""
        self.usage.seconds += seconds
        if feeding_less is not None:
            self.usage.feed_s += max(0.0, seconds - feeding_less)

    def _take_off(self, batches: list[Batch]) -> _Flight:
        sequences = [one for batch in batches for one in batch]
        is_alone = len(sequences) == 1
        if self._tokens_max and not is_alone and _tokens(sequences) > self._tokens_max:
            return _Flight(batches)
        try:
            parts = [[one] for one in sequences] if self._apart else [sequences]
            layouts = [
                Layout([len(one.ids) for one in part], self._encoder.frame, self.kernel)
                for part in parts
            ]
            buffer = self._buffer(sum(_room(layout) for layout in layouts))
            launch = self._launch(parts, layouts, buffer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _Flight(batches)
        return _Flight(batches, launch, buffer)

    def _launch(
        self, parts: Sequence[Batch], layouts: Sequence[Layout], buffer: torch.Tensor
    ) -> Launch:
        """Launch packs of sequences, each of which has a part of the buffer."""
        first = 0
        starts = []
        for part, layout in zip(parts, layouts, strict=True):
            starts.append(first)
            layout.write([one.ids for one in part], buffer.numpy()[first:])  # type: ignore[misc]
            first += _room(layout)
        size = starts[-1] + layouts[-1].bytes

        def compute(data: torch.Tensor) -> torch.Tensor:
            packs = [
                Pack.read(data[start:] if start else data, layout)
                for start, layout in zip(starts, layouts, strict=True)
            ]
            states = self._encoder.states_of(packs, self._pooler.convention.layers)
            rows = [self._rows(pack, each) for pack, each in zip(packs, states, strict=True)]
            return torch.cat(rows) if len(rows) > 1 else rows[0]

        with typed_errors():
            return self._device.launch(buffer[:size], compute, tf32=self._tf32)

    def _rows(self, pack: Pack, states: torch.Tensor) -> torch.Tensor:
        rows = self._pooler(States(states, pack.bounds))
        if self._scorer is None:
            return rows
        chosen = self._pooler.convention.layers.numbers
        last = self._encoder.states(pack) if chosen else states
        return torch.cat([rows, self._scorer(pack, last, self._encoder)], -1)

    def _buffer(self, size: int) -> torch.Tensor:
        """Return a buffer that no launch in flight uses."""
        if self._buffers and len(self._buffers[-1]) >= size:
            return self._buffers.pop()
        self._buffers.clear()  # too small; buffers in flight are not among them
        with typed_errors():
            return self._device.staging(1 << (size - 1).bit_length())

    def _land(self, flights: deque[_Flight], warn: Warn) -> Iterator[tuple[Batch, Rows]]:
        """Wait for the first launch in flight, and yield its batches with their rows."""
        flight = flights.popleft()
        begun = time.perf_counter()
        rows = self._wait(flight)
        if rows is None:
            for other in flights:  # they hold memory
                other.rows = self._wait(other)
            rows = self._divided(flight.sequences, warn)
        tokens = _tokens(flight.sequences)
        self._spend(time.perf_counter() - begun)
        self.usage.tokens += tokens
        self.usage.pairs += sum(one.tokens**2 for one in flight.sequences)
        self._budget.note(tokens)
        self._try_larger()
        first = 0
        for batch in flight.batches:
            count = sum(one.rows for one in batch) if self.per_token else len(batch)
            yield batch, rows[first : first + count]
            first += count

    def _wait(self, flight: _Flight) -> Rows | None:
        """Return the rows of a launch; None if memory ran out."""
        if flight.rows is not None or flight.launch is None:
            return flight.rows
        launch, flight.launch = flight.launch, None
        try:
            with typed_errors():
                rows = launch.rows()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        self.usage.computing_s += launch.computing_s
        assert flight.buffer is not None
        self._buffers.append(flight.buffer)
        return rows

    def _divided(self, sequences: list[Tokenized], warn: Warn) -> Rows:
        """Return the rows of sequences that did not fit into memory together.

        Nothing is in flight, and the caller has left the block that caught the error, whose frames
        would keep memory.
        """
        tokens = _tokens(sequences)
        if self._tokens_max is None or tokens <= self._tokens_max:
            self._shrink(tokens, warn)
        assert self._tokens_max is not None
        found = []
        for part in divide_batch(sequences, self._tokens_max):
            rows = self._wait(self._take_off([part]))
            if rows is None and len(part) == len(sequences) == 1:
                raise TooLong(
                    f"a single sequence of {tokens:,} tokens does not fit into this device's "
                    f"memory. Plan with a smaller --max-residues, or use a GPU with more memory."
                )
            found.append(self._divided(part, warn) if rows is None else rows)
        return np.concatenate(found)

    def _try_larger(self) -> None:
        """After a while without an error try more tokens again: the memory may have been another
        process's. Each failure makes the while longer."""
        if self._tokens_max is None:
            return
        self._until_larger -= 1
        if self._until_larger <= 0:
            self._tokens_max, self._until_larger = 2 * self._tokens_max, self._patience

    def _shrink(self, tokens: int, warn: Warn) -> None:
        self._tokens_max = max(1, tokens // 2)
        self._until_larger = self._patience = 4 * self._patience
        self._budget.limit(self._tokens_max)
        self._device.release()
        warn(
            f"out of memory with {tokens:,} tokens; continuing with at most "
            f"{self._tokens_max:,} at once"
        )


def _room(layout: Layout) -> int:
    """Return the bytes of a pack in a buffer: the next one begins at a multiple of ALIGNMENT."""
    return -(-layout.bytes // ALIGNMENT) * ALIGNMENT


def _tokens(sequences: Batch) -> int:
    return sum(one.tokens for one in sequences)

"""Measure this machine's speed with a model, alone and with several workers at once.

A weight is a speed relative to an RTX 3090. Those of fsqueue's table are estimates for all kinds of
work; this one is measured with the actual model. It is printed, and only used if given as --weight.

Whether several workers on one device are faster than one depends on the model, the device and the
CPUs that feed it, so it is measured as it would be used: processes of their own on one device, each
with its part of the memory, and none stops working before the last one is measured.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import numpy as np

from embed.engine.batching import Tokenized
from embed.handlers.embed import Embed
from embed.models.cost import PER_SECOND, estimate
from embed.models.families import FAMILIES
from embed.models.windows import Windows
from fsqueue import FsqueueError, NotSupportedError, share_gpu

log = logging.getLogger(__name__)

LETTERS: Final = {"esm2": "ACDEFGHIKLMNPQRSTVWY", "dnabert": "ACGT", "auto": "ACGT"}
"""What other encoders read is unknown; these letters are bases and residues alike."""
LENGTHS: Final = {"esm2": (100, 500), "dnabert": (200, 1000), "auto": (100, 500)}
SEQUENCES: Final = 2000
"""So many are made, and used again and again: making them must not count."""
FIRST_LETTERS: Final = 60
"""The first batch is one such sequence; with a large model on a slow CPU that alone takes long."""
BATCH_S: Final = 8.0
"""The longest that a batch should take."""
WARM_SHARE: Final = 0.25
"""The part of the time to measure that passes first: a GPU finds out how many batches to join."""
WORTH: Final = 1.05
"""Several workers must be so much faster than one to be worth their memory."""


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
    on_gpu: bool = False

    @property
    def cost_per_s(self) -> float:
        """Return the cost that was done in a second."""
        return self.cost / self.seconds

    @property
    def sequences_per_s(self) -> float:
        return self.sequences / self.seconds

    @property
    def residues_per_s(self) -> float:
        return self.residues / self.seconds

    @property
    def weight(self) -> float:
        """Return the speed relative to an RTX 3090, to the two digits that are significant."""
        return weight_of(self.cost_per_s)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One worker alone, and several at once on the same device."""

    one: Calibration
    several: tuple[Calibration, ...]

    @property
    def gain(self) -> float:
        """Return how many times as fast as one the several are together."""
        return sum(each.cost_per_s for each in self.several) / self.one.cost_per_s

    @property
    def best(self) -> int:
        """Return how many workers to start."""
        return len(self.several) if self.gain >= WORTH else 1

    @property
    def weight(self) -> float:
        """Return the weight of a spool: a GPU has one for all its workers, a CPU one for each."""
        if self.best == 1:
            return self.one.weight
        rate = sum(each.cost_per_s for each in self.several)
        return weight_of(rate if self.one.on_gpu else rate / len(self.several))


def weight_of(cost_per_s: float) -> float:
    """Return a speed relative to an RTX 3090, to two digits."""
    return float(f"{max(cost_per_s / PER_SECOND, 1e-6):.2g}")


def calibrate(options: dict[str, Any], seconds: float) -> Calibration:
    """Run batches for about `seconds` on the first visible GPU, or the CPU.

    Raises as `Handler.run` does.
    """
    bench = _Bench(Embed().prepare(options))
    return next(bench.measure(seconds))


def side_by_side(
    options: dict[str, Any],
    seconds: float,
    workers: int,
    *,
    on_one: Callable[[Calibration], object] = lambda one: None,
) -> SideBySide:
    """Measure one worker for about `seconds`, then `workers` at once on the same device.

    Each is a process of its own, also the single one. `on_one` is called with its measurement.
    Raises as `Handler.run` does, and NotSupportedError if the workers do not fit beside each other.
    """
    options = Embed().prepare(options)
    (one,) = _measure(options, seconds, 1)
    on_one(one)
    return SideBySide(one, tuple(_measure(options, seconds, workers)))


# ---- one worker ----


class _Bench:
    """A loaded model, and batches that this device runs in seconds."""

    def __init__(self, options: dict[str, Any]) -> None:
        """`options` are prepared ones. Raises as `Handler.run` does."""
        self._options = options
        self._handler = Embed()
        begun = time.monotonic()
        self._engine, self._tokenizer = self._handler.engine(options, log.warning)
        self._load_seconds = time.monotonic() - begun
        self._costs = estimate(options).costs
        self._windows = Windows.of(options)
        self._source = itertools.cycle(_sequences(options, SEQUENCES))
        self._time([Tokenized(0, self._tokenizer.read(b"ACGT" * 3)[0])])  # the first call is slow
        self._letters_max = self._find_size()

    def _find_size(self) -> int:
        """Return how many letters a batch has: as many as in a plan, fewer on a slow device."""
        letters, most = FIRST_LETTERS, self._options["tokens_per_batch"]
        while letters < most and self._time(self._read(self._letters(letters))) < BATCH_S / 8:
            letters = min(4 * letters, most)
        return letters

    def _time(self, batch: Sequence[Tokenized]) -> float:
        begun = time.monotonic()
        self._engine.embed(batch, log.warning)  # when it returns, the rows are on the CPU
        return time.monotonic() - begun

    def _letters(self, letters_max: int) -> list[bytes]:
        """Return sequences of about so many letters in total, none longer than that."""
        found: list[bytes] = []
        letters = 0
        while letters < letters_max:
            found.append(next(self._source)[:letters_max])
            letters += len(found[-1])
        return found

    def _read(self, batch: Sequence[bytes]) -> list[Tokenized]:
        found = self._tokenizer.windows(batch, self._windows, first_only=True)
        return [Tokenized(0, windows[0].ids) for windows, _ in found]

    def measure(self, seconds: float) -> Iterator[Calibration]:
        """Run batches as a worker does, and yield the measurement again and again while it works.

        The first one after about `seconds`; those who ask for more keep the device busy.
        """
        sizes: deque[tuple[int, int, int]] = deque()

        def batches() -> Iterator[list[Tokenized]]:
            while True:
                batch = self._letters(self._letters_max)
                lengths = np.array([len(letters) for letters in batch])
                sizes.append((len(batch), int(lengths.sum()), int(self._costs(lengths).sum())))
                yield self._read(batch)

        counts = np.zeros(3, np.int64)
        started, begun, result = time.monotonic(), None, None
        for _ in self._engine.run(batches(), log.warning):
            now = time.monotonic()
            size = sizes.popleft()
            if begun is not None:
                counts += size
            elif now - started >= WARM_SHARE * seconds:
                begun = now  # what came before may have been in flight since the start
            if result is None and begun is not None and now - begun >= seconds:
                result = self._result(now - begun, *counts.tolist())
            if result is not None:
                yield result

    def _result(self, seconds: float, sequences: int, residues: int, cost: int) -> Calibration:
        return Calibration(
            model=self._options["model"],
            dtype=self._options["dtype"],
            device=self._handler.device_name(),
            seconds=seconds,
            load_seconds=self._load_seconds,
            sequences=sequences,
            residues=residues,
            cost=cost,
            on_gpu="device" in self._engine.provenance(),
        )


def _sequences(options: Mapping[str, Any], count: int) -> list[bytes]:
    rng, family = random.Random(1), options["family"]
    letters = LETTERS[FAMILIES[family].name]
    lengths = (min(rng.randint(*LENGTHS[family]), options["max_residues"]) for _ in range(count))
    return ["".join(rng.choices(letters, k=length)).encode() for length in lengths]


# ---- several at once ----


def _measure(options: dict[str, Any], seconds: float, workers: int) -> list[Calibration]:
    """Measure so many processes at once: they begin together, and none ends before all are done."""
    with _processes(options, seconds, workers) as started:
        for process, line in started:
            _receive(process, line)  # its model is loaded
        for _, line in started:
            line.send("measure")
        return [_receive(process, line) for process, line in started]


@contextmanager
def _processes(
    options: dict[str, Any], seconds: float, workers: int
) -> Iterator[list[tuple[BaseProcess, Connection]]]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    started: list[tuple[BaseProcess, Connection]] = []
    try:
        for number in range(workers):
            mine, its = context.Pipe()
            process: BaseProcess = context.Process(
                target=_work, args=(its, options, seconds, workers, number), daemon=True
            )
            process.start()
            its.close()
            started.append((process, mine))
        yield started
    finally:
        for each, _ in started:
            each.kill()
        for each, line in started:
            each.join()
            line.close()


def _receive(process: BaseProcess, line: Connection) -> Any:
    """Return what a process sends; raise what it raised."""
    try:
        found = line.recv()
    except EOFError:
        process.join()
        raise NotSupportedError(
            f"a process of the measurement ended (exit status {process.exitcode}): most likely "
            f"this machine has too little memory for so many. Try fewer --workers, or a smaller "
            f"model; see: dmesg"
        ) from None
    if isinstance(found, FsqueueError):
        raise found
    return found


def _work(
    line: Connection, options: dict[str, Any], seconds: float, workers: int, number: int
) -> None:
    """Be one of the processes; only the first one warns, for all warn of the same."""
    logging.basicConfig(
        level=logging.ERROR if number else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    share_gpu(workers)
    try:
        bench = _Bench(options)
        line.send("loaded")
        line.recv()
        for number, result in enumerate(bench.measure(seconds)):
            if number == 0:
                line.send(result)
    except FsqueueError as error:
        line.send(error)
    except (EOFError, BrokenPipeError):
        pass  # the other end has what it wants, or was interrupted

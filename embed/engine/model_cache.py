"""Keep models loaded while they fit into memory; the least recently used is evicted first.

Loads are serialised on each host: several at once from one disk take longer than one after the
other, and need their memory twice while they convert.

While models are loaded, Python's garbage collector leaves alone what was there when the last one
was loaded (`gc.freeze`): PyTorch and transformers are 200,000 objects, and looking at them all took
110 ms every few claims, in which no kernel is asked for.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch

from embed.engine.budget import TOKENS_MAX, Budget, FoundBudget
from embed.engine.device import Device
from embed.engine.device_errors import is_out_of_memory, typed_errors
from embed.engine.float32_fallback import Float32Fallback, with_float32_fallback
from embed.engine.remembered_budget import BudgetKey, recall, remember
from embed.models import families
from embed.models.conventions.convention import Convention
from embed.models.families import Tokenizer
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.products import DTYPES
from embed.models.packed.streamed import Place
from embed.models.published import adapter, files, hub
from embed.models.scores.masked_lm import Scores
from fsqueue import NotSupportedError, host_lock, workers_per_gpu

log = logging.getLogger(__name__)

ROOM_BYTES: Final = 2 << 30
"""What a batch may need in addition to the weights."""


@dataclass(slots=True)
class LoadedModel:
    """A loaded model, and an engine for each pooling that was used."""

    kind: str
    spec: str
    """The model as --model takes it: its folder, or its hub id and revision."""
    folder: str
    adapter: str
    """The folder of the adapter that is merged; "" without one."""
    device: Device
    encoder: PackedEncoder
    tokenizer: Tokenizer
    engines: dict[tuple[Convention, bool, Scores | None], Float32Fallback] = field(
        default_factory=dict
    )
    float32: dict[Place, Any] = field(default_factory=dict)
    """What was loaded again for what overflowed, for all engines."""
    budget: Budget | None = None
    """How many tokens it runs at once, as far as that is found out."""

    def engine(self, options: Mapping[str, Any]) -> Float32Fallback:
        """Return the engine that pools as these options say."""
        convention, is_fixed = Convention.of(options), bool(options.get("deterministic"))
        scores = Scores.of(options)
        key = convention, is_fixed, scores
        if key not in self.engines:
            if self.budget is None and self.device.ahead > 1 and not is_fixed:
                self.budget = self._new_budget(options)
            self.engines[key] = with_float32_fallback(
                self.encoder,
                self.tokenizer,
                options["family"],
                self.folder,
                self.device,
                dtype=options["dtype"],
                convention=convention,
                budget=None if is_fixed else self.budget,
                scores=scores,
                adapter=self.adapter,
                again=self.float32,
            )
        return self.engines[key]

    def _new_budget(self, options: Mapping[str, Any]) -> Budget:
        """Return one that begins with what an earlier process found on such a card."""
        planned = options["tokens_per_batch"]
        key = BudgetKey(
            self.device.name,
            workers_per_gpu(),
            options["weights"],
            options["dtype"],
            planned,
            torch.__version__,
        )
        known = recall(key, TOKENS_MAX)
        if known is not None:
            log.info("%s tokens per launch, as found before (%s)", f"{known:,}", key.path())
        return FoundBudget(self.device, planned, known=known, found=partial(remember, key))


class ModelCache:
    """The models that this process has loaded, the least recently used first."""

    def __init__(self, device: Device, warn: Callable[[str], None]) -> None:
        self.device, self._warn = device, warn
        self._models: dict[tuple[str, str], LoadedModel] = {}

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())

    def get(self, options: Mapping[str, Any], kind: str, models_max: int | None) -> LoadedModel:
        """Return the model of a plan's options, loading it if necessary.

        Raises as `families.load` and `hub.locate` do, and NotSupportedError if it does not fit.
        """
        key = (options["weights"], options["dtype"])
        if key in self._models:
            self._models[key] = self._models.pop(key)  # now the most recently used
            return self._models[key]
        self.device.check(options["dtype"], self._warn)
        with host_lock("load"), typed_errors():
            folder, adapted = hub.locate(options), adapter.locate(options)
            self._make_room(_size(folder, options["dtype"]), models_max)
            encoder, tokenizer = self._load(options, folder, adapted)
        spec = options["folder"] or f"{options['model']}@{options['revision']}"
        self._models[key] = LoadedModel(
            kind, spec, folder, adapted, self.device, encoder, tokenizer
        )
        gc.collect()  # what is garbage now would stay
        gc.freeze()
        return self._models[key]

    def _load(
        self, options: Mapping[str, Any], folder: str, adapted: str
    ) -> tuple[PackedEncoder, Tokenizer]:
        while True:
            try:
                return families.load(
                    options["family"], folder, options["dtype"], self.device.place, adapted
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self._models:
                    raise NotSupportedError(
                        f"the model {options['model']} does not fit into {_whose_memory()}. Plan "
                        f"with --dtype bfloat16, or use a GPU with more memory."
                    ) from error
            self._evict()

    def _make_room(self, size: int, models_max: int | None) -> None:
        while self._models and (
            (models_max is not None and len(self._models) >= models_max) or not self._fits(size)
        ):
            self._evict()

    def _fits(self, size: int) -> bool:
        free = self.device.free_bytes()
        return free is None or free >= size + ROOM_BYTES

    def close(self) -> None:
        """Forget all models."""
        gc.unfreeze()
        self._models.clear()

    def _evict(self) -> None:
        gc.unfreeze()  # so that no part of the model stays because it is in a cycle
        del self._models[next(iter(self._models))]
        gc.collect()  # some modules of transformers, and hooks, refer to each other in circles
        self.device.release()


def _whose_memory() -> str:
    workers = workers_per_gpu()
    if workers == 1:
        return "this device's memory"
    return f"this worker's part of the GPU's memory, which {workers} share (--per-gpu)"


def _size(folder: str, dtype: str) -> int:
    """Return about how much memory a model needs; its files are usually float32."""
    size = sum(os.path.getsize(path) for path in files.weight_files(folder))
    return size if DTYPES[dtype].itemsize == 4 else size // 2

"""See to it that every vector is finite: what half precision could not hold is computed again.

float16 ends at 65,504, and a state beyond becomes infinite. The sequence it belongs to is then run
once more, alone and in float32; so its vector depends neither on its neighbours nor on what the
claim's earlier owners did. The model is loaded a second time for that, once, if ever.

What this module does not know: why a vector is not finite. Whoever keeps rows refuses what still is
none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.engine.batching import Tokenized
from embed.engine.engine import Engine
from embed.models import families
from embed.models.families import Tokens
from embed.models.pooling import pooling
from fsqueue import host_lock

Rows = NDArray[np.float32]


def load(
    family: str, folder: str, device: Any, *, dtype: str, pool: str
) -> tuple[Float32Fallback, Tokens]:
    """Load a model as `families.load` does, and pool its states as --pooling `pool` says."""
    encoder, tokens = families.load(family, folder, dtype, device)
    return mended(encoder, tokens, family, folder, device, dtype=dtype, pool=pool), tokens


def mended(
    encoder: Any, tokens: Tokens, family: str, folder: str, device: Any, *, dtype: str, pool: str
) -> Float32Fallback:
    """Return a loaded model's engine that can load the model once more, in float32."""
    pooled = pooling(pool, family, tokens.edges)

    def in_float32() -> Engine:
        with host_lock("load"):
            exact, _ = families.load(family, folder, "float32", device)
        return Engine(exact, pooled)

    return Float32Fallback(Engine(encoder, pooled), None if dtype == "float32" else in_float32)


class Float32Fallback:
    """An engine, and how to get the same model in float32."""

    def __init__(self, engine: Engine, in_float32: Callable[[], Engine] | None) -> None:
        self._engine, self._in_float32 = engine, in_float32
        self._exact: Engine | None = None

    @property
    def width(self) -> int:
        return self._engine.width

    def embed(self, batch: Sequence[Tokenized], warn: Callable[[str], None]) -> Rows:
        """Return the sequences' rows as `Engine.embed` does, and raise what it raises."""
        rows = self._engine.embed(batch, warn)
        bad = ~np.isfinite(rows).all(axis=1)
        if self._in_float32 is None or not bad.any():
            return rows
        each = len(rows) != len(batch)  # a row for each token
        edges = np.cumsum([len(one.ids) if each else 1 for one in batch])[:-1]
        again = [part.any() for part in np.split(bad, edges)]
        warn(f"{sum(again)} vectors overflowed in half precision, and are computed in float32")
        parts = np.split(rows, edges)
        for number, one in enumerate(batch):
            if again[number]:
                parts[number] = self._load().embed([one], warn)
        return np.concatenate(parts)

    def _load(self) -> Engine:
        if self._exact is None:
            assert self._in_float32 is not None
            self._exact = self._in_float32()
        return self._exact

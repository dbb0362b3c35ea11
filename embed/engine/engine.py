"""Run batches on a device, and handle its errors.

When memory runs out, the batch is divided, and later batches are kept as small. An error that
leaves the CUDA context unusable ends the worker: nothing that this process does on its GPU
afterwards can succeed, so every claim that it took would fail.

What this module does not know: files, claims and rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from embed.engine.batching import Tokenized, divide_batch
from embed.models.convention import LAST, Layers
from embed.models.pooling import Pooler
from embed.models.states import States
from fsqueue import ClaimFailed, WorkerBroken

UNUSABLE_CONTEXT: Final = (
    "device-side assert",
    "unspecified launch failure",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "uncorrectable ecc",
    "hardware stack error",
    "gpu is lost",
    "fallen off the bus",
    "launch timed out",
    "cudnn_status_internal_error",
)
NO_MEMORY: Final = ("out of memory", "alloc_failed", "can't allocate memory")


def use_threads(count: int) -> None:
    """Compute with this many threads on the CPU, whatever the environment says.

    The results depend on it: a matrix product that is divided differently is rounded differently.
    """
    torch.set_num_threads(count)


def choose_device(warn: Callable[[str], None]) -> torch.device:
    """Return the first visible GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        warn(
            f"this machine has an NVIDIA GPU that PyTorch {torch.__version__} cannot use; using "
            f"the CPU. Install a CUDA build that the driver supports, or choose the CPU "
            f"explicitly: CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cpu")


class Encoder(Protocol):
    """A loaded model of any family."""

    @property
    def width(self) -> int:
        """Return how many numbers a state has."""

    def hidden(self, sequences: Sequence[Any], layers: Layers = LAST) -> States:
        """Return the states of each sequence of ids, including the begin and end tokens."""


class Engine:
    """An encoder on its device, and how many tokens fit into the device's memory."""

    def __init__(self, encoder: Encoder, pooler: Pooler) -> None:
        self._encoder = encoder
        self._pooler = pooler
        self._tokens_max: int | None = None

    @property
    def width(self) -> int:
        return self._pooler.width(self._encoder.width)

    @property
    def per_token(self) -> bool:
        """Return whether a sequence has a row for each token."""
        return self._pooler.convention.per_token

    def embed(self, batch: Sequence[Tokenized], warn: Callable[[str], None]) -> NDArray[np.float32]:
        """Return the sequences' rows, in order: one for each, or one for each token.

        No sequence may be empty. Raises ClaimFailed if a single sequence does not fit into memory,
        WorkerBroken if the GPU is unusable.
        """
        tokens_max = self._tokens_max or sum(sequence.tokens for sequence in batch)
        rows = [self._embed_part(part, warn) for part in divide_batch(batch, tokens_max)]
        return np.concatenate(rows)

    def _embed_part(
        self, part: list[Tokenized], warn: Callable[[str], None]
    ) -> NDArray[np.float32]:
        try:
            return self._forward(part)
        except RuntimeError as error:
            if _mentions(error, UNUSABLE_CONTEXT):
                raise WorkerBroken(
                    f"this GPU's context is unusable ({_first_line(error)}); a fault of the card "
                    f"or its driver. This worker stops. See: nvidia-smi -q, dmesg"
                ) from error
            if not is_out_of_memory(error):
                raise
            # The retry is outside this block, where the exception's frames would keep the failed
            # batch's memory.
        self._shrink(part, warn)
        return self.embed(part, warn)

    def _forward(self, part: list[Tokenized]) -> NDArray[np.float32]:
        ids = [sequence.ids for sequence in part]
        states = self._encoder.hidden(ids, self._pooler.convention.layers)
        with torch.inference_mode():
            rows = self._pooler(states)
        return rows.cpu().numpy()  # type: ignore[no-any-return]

    def _shrink(self, part: list[Tokenized], warn: Callable[[str], None]) -> None:
        tokens = sum(sequence.tokens for sequence in part)
        if len(part) == 1:
            raise ClaimFailed(
                f"a single sequence of {tokens:,} tokens does not fit into this GPU's memory. Plan "
                f"with a smaller --max-residues, or use a GPU with more memory."
            )
        self._tokens_max = min(tokens // 2, self._tokens_max or tokens)
        torch.cuda.empty_cache()
        warn(
            f"out of GPU memory with {tokens:,} tokens; continuing with at most "
            f"{self._tokens_max:,} at once"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device, or the machine, ran out of memory."""
    return isinstance(error, MemoryError) or _mentions(error, NO_MEMORY)


def _mentions(error: Exception, phrases: Sequence[str]) -> bool:
    text = str(error).lower()
    return any(phrase in text for phrase in phrases)


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

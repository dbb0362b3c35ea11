"""Run batches on a device, and survive what devices do.

Out of memory: the batch is divided, and the smaller budget kept for all that follows. An error that
leaves the CUDA context unusable ends the worker: nothing that this process does afterwards on its
GPU can succeed, and every claim it took would fail.

What this module does not know: files, claims and rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from embed.engine.batching import Tokenized, divided
from embed.models import pooling
from fsqueue import ClaimFailed, WorkerBroken

POISON: Final = (
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

    Bytes depend on it: a matrix product that is divided otherwise is rounded otherwise.
    """
    torch.set_num_threads(count)


def choose_device(warn: Callable[[str], None]) -> torch.device:
    """Return the first visible GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        warn(
            f"this machine has an NVIDIA GPU that PyTorch {torch.__version__} cannot use; working "
            f"on the CPU. Install a build for CUDA that its driver supports, or say that the CPU "
            f"is meant: CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cpu")


class Encoder(Protocol):
    """A loaded model, of whatever family."""

    @property
    def width(self) -> int:
        """Return how many numbers a state has."""

    def hidden(self, sequences: Sequence[Any]) -> list[torch.Tensor]:
        """Return the states of each sequence of ids, begin and end token included."""


class Engine:
    """An encoder on its device, with what was learned about the device's memory."""

    def __init__(self, encoder: Encoder, pool: pooling.Pooling = pooling.mean) -> None:
        self._encoder = encoder
        self._pool = pool
        self._tokens_max: int | None = None

    @property
    def width(self) -> int:
        return self._encoder.width

    def embed(self, batch: Sequence[Tokenized], warn: Callable[[str], None]) -> NDArray[np.float32]:
        """Return the sequences' rows, one after the other: one each as pooled, or one per token.

        None may be empty. Raises ClaimFailed if a single sequence does not fit, WorkerBroken if the
        GPU is beyond use.
        """
        budget = self._tokens_max or sum(sequence.tokens for sequence in batch)
        rows = [self._part(part, warn) for part in divided(batch, budget)]
        return np.concatenate(rows)

    def _part(self, part: list[Tokenized], warn: Callable[[str], None]) -> NDArray[np.float32]:
        try:
            return self._forward(part)
        except RuntimeError as error:
            if _says(error, POISON):
                raise WorkerBroken(
                    f"this GPU's context is beyond repair ({_first_line(error)}); a fault of the "
                    f"card or its driver. This worker stops. Look at: nvidia-smi -q, dmesg"
                ) from error
            if not is_out_of_memory(error):
                raise
            # Outside this block, or the exception's frames keep the failed batch's memory.
        self._shrink(part, warn)
        return self.embed(part, warn)

    def _forward(self, part: list[Tokenized]) -> NDArray[np.float32]:
        hidden = self._encoder.hidden([sequence.ids for sequence in part])
        with torch.inference_mode():
            rows = torch.cat([self._pool(states).view(-1, self.width) for states in hidden])
        return rows.cpu().numpy()  # type: ignore[no-any-return]

    def _shrink(self, part: list[Tokenized], warn: Callable[[str], None]) -> None:
        tokens = sum(sequence.tokens for sequence in part)
        if len(part) == 1:
            raise ClaimFailed(
                f"a single sequence of {tokens:,} tokens does not fit into the memory of this GPU, "
                f"even alone. Plan with a smaller --max-residues, or use a GPU with more memory."
            )
        self._tokens_max = min(tokens // 2, self._tokens_max or tokens)
        torch.cuda.empty_cache()
        warn(f"out of GPU memory with {tokens:,} tokens; going on with {self._tokens_max:,}")


def is_out_of_memory(error: Exception) -> bool:
    """Say whether a device, or the machine, had no room for what was asked of it."""
    return isinstance(error, MemoryError) or _says(error, NO_MEMORY)


def _says(error: Exception, phrases: Sequence[str]) -> bool:
    text = str(error).lower()
    return any(phrase in text for phrase in phrases)


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

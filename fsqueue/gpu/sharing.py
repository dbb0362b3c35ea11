"""Several workers on one GPU: how many there are, what each may use, and whether MPS is there.

CUDA_VISIBLE_DEVICES says which GPU a process uses; FSQUEUE_PER_GPU says how many workers use it,
each an equal share of its memory. `run --per-gpu N` sets it for the workers that it starts, and the
programs that they start inherit it.

Without MPS the processes on a card take turns. With NVIDIA's Multi-Process Service (a daemon that
is started by the user of the workers, or by the site) their kernels run side by side. Nothing here
starts or needs it. A MIG instance is a GPU of its own (`nvml`), and can be shared like one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, MutableMapping
from typing import Final

from fsqueue.errors import UsageError

VARIABLE: Final = "FSQUEUE_PER_GPU"
PER_GPU_MAX: Final = 48
"""How many clients an MPS server has at most on a GPU, from Volta on."""
USABLE: Final = 0.94
"""The driver and the context of a process keep the rest of a GPU's memory, ..."""
CONTEXT_GIB: Final = 0.6
"""... and each further process on it takes so much for a context of its own."""
MPS_DIRECTORY: Final = "/tmp/nvidia-mps"
"""Where MPS has its pipes unless CUDA_MPS_PIPE_DIRECTORY says otherwise."""


def workers_per_gpu(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many workers share this process's GPU; UsageError if that is no number of them."""
    text = environ.get(VARIABLE, "").strip()
    if not text:
        return 1
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 0
    if not 1 <= number <= PER_GPU_MAX:
        raise UsageError(
            f"{VARIABLE}={text[:20]!r} is not a number of workers for one GPU: use 1 to "
            f"{PER_GPU_MAX}, or unset it."
        )
    return number


def share_gpu(workers: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Note for this process and its children that so many workers share the GPU."""
    environ.update(sharing_environ(workers))


def sharing_environ(workers: int) -> dict[str, str]:
    """Return the variables that tell a child process how many workers share its GPU."""
    return {VARIABLE: str(workers) if workers > 1 else ""}


def usable_gib(memory_gib: float, workers: int = 1) -> float:
    """Return what each of so many workers can use of a GPU's memory, in GiB; 0 if nothing."""
    return max(0.0, memory_gib * USABLE - (workers - 1) * CONTEXT_GIB) / workers


def mps_directory(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the pipe directory of an MPS daemon; None if there is none here.

    A hint: what a killed daemon left behind looks the same.
    """
    directory = environ.get("CUDA_MPS_PIPE_DIRECTORY") or MPS_DIRECTORY
    try:
        mode = os.stat(os.path.join(directory, "control")).st_mode
    except (OSError, ValueError):
        return None
    return directory if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None

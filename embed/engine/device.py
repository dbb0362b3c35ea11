"""What the engine needs of a device: memory beside it, launches that it works on, their results.

A launch is everything that happens to a batch: its buffer goes up, kernels run, its rows come down.
`launch` may return before any of it has begun; `Launch.rows` waits for it. Launches run in their
order. A buffer of `staging` belongs to its launch until `rows` has returned: a device may read it
at any time until then.

There are four implementations: the CPU here, CUDA in `cuda.py`, the GPU of a Mac in `mps.py`, and
one for tests, which runs late and runs out of memory where it is told to. Nothing else in the
engine knows which it has.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from embed.models.packed.products import DTYPES, has_half_instructions
from fsqueue import memory_available

log = logging.getLogger(__name__)

REACH_S: Final = 0.05
REACH_SIZES: Final = {True: 768, False: 4096}
"""Whether on a CPU: rows and columns of the matrices that show what a device reaches."""

Rows = NDArray[np.float32]
Compute = Callable[[torch.Tensor], torch.Tensor]
"""Turns a buffer on the device, (bytes,) uint8, into rows, float32. It must not wait."""
Warn = Callable[[str], None]


class Launch(Protocol):
    """A batch on its way."""

    computing_s: float
    """How long the device computed, once `rows` has returned."""

    def rows(self) -> Rows:
        """Wait for the rows, and return them. Raises what the device raised."""


class Device(ABC):
    """One processor with its memory."""

    place: torch.device
    """Where its tensors are."""
    ahead: int
    """How many launches to keep in flight, so that it never waits for the next."""
    capability: tuple[int, int] | None = None
    """The CUDA compute capability."""
    is_cpu: bool = False
    is_proven: bool = True
    """Whether its vectors are known to be right; else each model's are compared with the CPU's."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its model, as drivers call it; `cpu` for any CPU."""

    @abstractmethod
    def staging(self, size: int) -> torch.Tensor:
        """Return a buffer of so many bytes, in memory that the device can read by itself."""

    @abstractmethod
    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        """Send a buffer up, compute its rows there, and send them back.

        `tf32`: products of float32 may round their factors, where the device is faster then.

        Raises what can be known at once, such as torch.OutOfMemoryError; the rest is raised by
        `Launch.rows`.
        """

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return how much memory can still be allocated; None if unknown."""

    @abstractmethod
    def used_share(self) -> float | None:
        """Return the largest share of the memory in use since the last call; None if unknown."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """Return the most memory that this process has held there."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all that was sent."""

    def reach(self, dtype: str) -> float:
        """Return the operations per second in large products of this precision, measured once.

        0 if that fails, for want of memory say: it is for a picture, and must not cost a claim.
        """
        if dtype not in self._reach:
            try:
                self._reach[dtype] = _measure_reach(self, DTYPES[dtype])
            except (RuntimeError, MemoryError) as error:
                log.debug("the speed in products cannot be measured: %s", error)
                self._reach[dtype] = 0.0
        return self._reach[dtype]

    @cached_property
    def _reach(self) -> dict[str, float]:
        return {}

    @abstractmethod
    def release(self) -> None:
        """Give back memory that is kept for later."""

    @abstractmethod
    def check(self, dtype: str, warn: Warn) -> None:
        """Find out whether models in this precision can run here.

        Raises NotSupportedError, with what to install or to plan instead.
        """


class Finished:
    """A launch that has run already."""

    def __init__(self, rows: torch.Tensor, computing_s: float) -> None:
        self._rows, self.computing_s = rows, computing_s

    def rows(self) -> Rows:
        return self._rows.numpy()  # type: ignore[no-any-return]


class Cpu(Device):
    """This machine's processor. A launch has run when `launch` returns."""

    place = torch.device("cpu")
    ahead = 1
    is_cpu = True
    name = "cpu"

    def staging(self, size: int) -> torch.Tensor:
        """Return ordinary memory."""
        return torch.empty(size, dtype=torch.uint8)

    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        """Compute the rows."""
        begun = time.perf_counter()
        with torch.inference_mode():
            rows = compute(buffer)
        return Finished(rows, time.perf_counter() - begun)

    def free_bytes(self) -> int | None:
        """Return the memory that this process may still use."""
        return memory_available()

    def used_share(self) -> float | None:
        """Return None: the machine is shared."""
        return None

    def peak_bytes(self) -> int:
        """Return the most memory that this process has had."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def synchronize(self) -> None:
        """Do nothing; `launch` waits."""

    def release(self) -> None:
        """Do nothing; the allocator gives memory back by itself."""

    def check(self, dtype: str, warn: Warn) -> None:
        """Warn of a precision that is only emulated: it works, and is slower than float32."""
        if dtype == "tf32":
            warn("a CPU has no TF32: this plan of --dtype tf32 is computed in float32 here.")
        elif dtype != "float32" and not has_half_instructions(DTYPES[dtype]):
            warn(
                f"this CPU has no instructions for {dtype} and emulates it, which is several times "
                f"slower than float32. Plan with --dtype float32 for CPUs."
            )


def _measure_reach(device: Device, dtype: torch.dtype) -> float:
    """Multiply matrices for REACH_S, and return the operations per second."""
    is_cpu = device.place.type == "cpu"  # also where it stands for another device
    size = REACH_SIZES[is_cpu]
    # Waiting takes about as long as a small product, so a GPU is given several at once.
    together = 1 if is_cpu else 16
    with torch.inference_mode():
        left = torch.ones(size, size, dtype=dtype, device=device.place)
        torch.mm(left, left)  # the first one also chooses a kernel, and may load it
        device.synchronize()
        count, begun = 0, time.perf_counter()
        while (passed_s := time.perf_counter() - begun) < REACH_S or not count:
            for _ in range(together):
                torch.mm(left, left)
            device.synchronize()
            count += together
    return 2.0 * size**3 * count / passed_s

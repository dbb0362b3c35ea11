"""A GPU whose tensors have no numbers, and a record of the memory that launches hold on it.

For models that are in host memory and copy their layers to a device: fake tensors (`fake_cuda`)
do not take real ones for that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from embed.engine.device import Compute, Launch
from tests.support.fake_cuda import FakeCuda

META = torch.device("meta")


class MemoryRecord(TorchDispatchMode):
    """What is held there of what was copied up, and of all that was made, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._copied: list[tuple[StorageWeakRef, int]] = []
        self._made: list[tuple[StorageWeakRef, int]] = []
        self.copies = self.copied_peak = self.made_peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not isinstance(found, torch.Tensor) or found.device != META:
            return found
        held = StorageWeakRef(found.untyped_storage()), found.untyped_storage().nbytes()
        if held not in self._made:
            self._made.append(held)
            if isinstance(args[0], torch.Tensor) and args[0].device != META:
                self.copies += 1
                self._copied.append(held)
        self.made_peak = max(self.made_peak, self.held_bytes())
        self.copied_peak = max(self.copied_peak, _held(self._copied))
        return found

    def held_bytes(self) -> int:
        """Return what is still held of all that was made."""
        return _held(self._made)


def _held(storages: list[tuple[StorageWeakRef, int]]) -> int:
    storages[:] = [each for each in storages if not each[0].expired()]
    return sum(size for _, size in storages)


class MetaDevice(FakeCuda):
    """The CUDA device with its tensors on `meta`."""

    def __init__(self) -> None:
        super().__init__((7, 5))
        self.place = META
        self.memory: list[MemoryRecord] = []

    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        def recorded(data: torch.Tensor) -> torch.Tensor:
            with self.memory[-1]:
                return compute(data)

        self.memory.append(MemoryRecord())
        return super(FakeCuda, self).launch(buffer, recorded, tf32=tf32)

    def _pinned_like(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(rows)

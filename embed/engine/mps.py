"""The GPU of a Mac, by Apple's Metal: the one place that names torch.mps.

Only where it is asked for (FSQUEUE_DEVICE=mps), and for a model only after its vectors were found
to be those of the CPU: the operators of this backend have been wrong in some releases of PyTorch.

A launch has run when `launch` returns. The memory is the machine's, which the CPU uses as well.
"""

from __future__ import annotations

import time

import torch

from embed.engine.device import Compute, Device, Finished, Launch, Warn
from embed.engine.device_errors import typed_errors
from embed.engine.kernel_check import check_kernels
from fsqueue import NotSupportedError


class Mps(Device):
    """The one GPU of a Mac."""

    place = torch.device("mps")
    ahead = 1
    is_proven = False

    def __init__(self) -> None:
        """Raises NotSupportedError if this is no Mac, or if its PyTorch cannot use the GPU."""
        if not torch.backends.mps.is_available():
            built = torch.backends.mps.is_built()
            why = "this Mac has no GPU that Metal supports" if built else "it was built without it"
            raise NotSupportedError(
                f"FSQUEUE_DEVICE=mps, but PyTorch {torch.__version__} has no MPS here: {why}. "
                f"Without FSQUEUE_DEVICE, the first GPU or else the CPU is used."
            )
        self._checked: set[str] = set()
        self._peak = 0

    @property
    def name(self) -> str:
        """Its model, such as `Apple M2 Max`."""
        return torch.backends.mps.get_name()  # type: ignore[no-any-return]

    def staging(self, size: int) -> torch.Tensor:
        """Return ordinary memory."""
        return torch.empty(size, dtype=torch.uint8)

    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        """Send the buffer up, compute the rows, and wait for them."""
        begun = time.perf_counter()
        with torch.inference_mode():
            rows = self._down(compute(self._up(buffer)))
        self._peak = max(self._peak, torch.mps.driver_allocated_memory())
        return Finished(rows, time.perf_counter() - begun)

    def _up(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer.to(self.place)

    def _down(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.cpu()

    def free_bytes(self) -> int | None:
        """Return what is left of the memory that Metal recommends to use."""
        used = torch.mps.driver_allocated_memory()
        return max(0, int(torch.mps.recommended_max_memory() - used))

    def used_share(self) -> float | None:
        """Return None: the machine is shared."""
        return None

    def peak_bytes(self) -> int:
        """Return the most memory that PyTorch held after a launch."""
        return self._peak

    def synchronize(self) -> None:
        """Wait for all that was sent."""
        torch.mps.synchronize()

    def release(self) -> None:
        """Give PyTorch's unused memory back."""
        torch.mps.empty_cache()

    def check(self, dtype: str, warn: Warn) -> None:
        """Run a product and the attention kernel that this precision would use, once."""
        if dtype in self._checked:
            return
        if dtype == "tf32":
            warn("Apple's GPUs have no TF32: this plan of --dtype tf32 is computed in float32.")
        try:
            with typed_errors():
                check_kernels(self.place, None, dtype)
        except TypeError as error:  # bfloat16 before macOS 14
            raise NotSupportedError(
                f"this Mac's GPU cannot compute in {dtype}: {error}. Plan with --dtype float32 "
                f"for it, or leave these claims to other GPUs."
            ) from error
        self._checked.add(dtype)

"""A GPU by CUDA, or by ROCm where PyTorch calls that `cuda`: the one place that names torch.cuda.

Where several workers share the GPU (`fsqueue run --per-gpu`), this one keeps to its part of the
memory: PyTorch allocates no more, and what is free and what is used is reckoned by the part.

Everything is enqueued on one stream, and only `rows` waits, for an event. Kernels of a launch reuse
the memory of the launch before without waiting, because they run after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from embed.engine.device import Compute, Device, Launch, Rows, Warn
from embed.engine.device_errors import typed_errors
from embed.engine.kernel_check import check_kernels
from embed.models.packed.kernels import AMPERE
from fsqueue import NotSupportedError, usable_gib, workers_per_gpu

AHEAD: Final = 3
"""One runs, one waits, one is being prepared or taken."""
VOLTA: Final = (7, 0)


class Cuda(Device):
    """The first visible GPU."""

    ahead = AHEAD
    share_bytes: int | None = None
    """What this worker may use of the memory; None: all that there is."""

    def __init__(self) -> None:
        self.place = torch.device("cuda:0")
        if (workers := workers_per_gpu()) > 1:
            total = torch.cuda.mem_get_info(self.place)[1]
            self.share_bytes = int(usable_gib(total / 2**30, workers) * 2**30)
            torch.cuda.set_per_process_memory_fraction(self.share_bytes / total, self.place)
        self.capability = torch.cuda.get_device_capability(self.place)
        self._checked: set[str] = set()
        self._peak = 0

    @staticmethod
    def is_here() -> bool:
        """Return whether this PyTorch sees a GPU."""
        return torch.cuda.is_available()  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        """Its model, as the driver calls it."""
        return torch.cuda.get_device_name(self.place)  # type: ignore[no-any-return]

    def staging(self, size: int) -> torch.Tensor:
        """Return pinned memory, which the card reads while the CPU goes on."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        """Enqueue the copy up, the kernels and the copy down."""
        with torch.inference_mode():
            begun = self._recorded_event()
            torch.backends.cuda.matmul.allow_tf32 = tf32  # read when a product is enqueued
            rows = compute(buffer.to(self.place, non_blocking=True))
            target = self._pinned_like(rows)
            target.copy_(rows, non_blocking=True)
            return _Enqueued(target, begun, self._recorded_event())

    def _pinned_like(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)

    def _recorded_event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def free_bytes(self) -> int | None:
        """Return what the driver has free, and what PyTorch holds without using it.

        What the neighbours on the card hold is not free; what is left of this worker's part is the
        most that is.
        """
        free = torch.cuda.mem_get_info(self.place)[0]
        allocated = torch.cuda.memory_allocated(self.place)
        free += torch.cuda.memory_reserved(self.place) - allocated
        if self.share_bytes is not None:
            free = min(free, max(0, self.share_bytes - allocated))
        return int(free)

    def used_share(self) -> float | None:
        """Return the peak of PyTorch's memory by that of the card, or of this worker's part."""
        peak = torch.cuda.max_memory_allocated(self.place)
        self._peak = max(self._peak, peak)
        torch.cuda.reset_peak_memory_stats(self.place)
        return float(peak / (self.share_bytes or torch.cuda.mem_get_info(self.place)[1]))

    def peak_bytes(self) -> int:
        """Return the most that PyTorch's tensors have taken."""
        self._peak = max(self._peak, torch.cuda.max_memory_allocated(self.place))
        return self._peak

    def synchronize(self) -> None:
        """Wait for the stream."""
        torch.cuda.synchronize(self.place)

    def reach(self, dtype: str) -> float:
        """Return it as `Device.reach` does, of the products that this precision is computed in."""
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        return super().reach(dtype)

    def release(self) -> None:
        """Give PyTorch's unused memory back to the driver."""
        torch.cuda.empty_cache()

    def check(self, dtype: str, warn: Warn) -> None:
        """Run a product and each attention kernel that this precision would use, once."""
        if dtype in self._checked:
            return
        refuse_missing_code(self.name, self.capability, torch.cuda.get_arch_list())
        refuse_emulation(self.name, self.capability, dtype)
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        with typed_errors():
            check_kernels(self.place, self.capability, dtype)
        self._checked.add(dtype)


class _Enqueued:
    """A launch whose rows are in place after an event."""

    def __init__(self, target: torch.Tensor, begun: Any, ended: Any) -> None:
        self._target, self._begun, self._ended = target, begun, ended
        self.computing_s = 0.0

    def rows(self) -> Rows:
        self._ended.synchronize()
        self.computing_s = self._begun.elapsed_time(self._ended) / 1e3
        return self._target.numpy()  # type: ignore[no-any-return]


# ---- what a card lacks ----


def refuse_missing_code(
    name: str, capability: tuple[int, int] | None, architectures: Sequence[str]
) -> None:
    """Raise NotSupportedError if PyTorch was built without code for a card.

    Machine code (`sm_86`) runs on cards of the same generation that are not older, and
    intermediate code (`compute_90`) on all that are not older. ROCm has names of another kind.
    """
    numbers = [_numbers(each) for each in architectures]
    if capability is None or not architectures or None in numbers:
        return
    for each, built in zip(architectures, numbers, strict=True):
        assert built is not None
        is_later = capability >= built
        if is_later and (each.startswith("compute_") or capability[0] == built[0]):
            return
    has = ", ".join(architectures)
    raise NotSupportedError(
        f"PyTorch {torch.__version__} has no code for this GPU, the {name} "
        f"(sm_{capability[0]}{capability[1]}); it was built for {has}. Install a build that "
        f"includes it, of an earlier CUDA version (pytorch.org, Get started, Previous versions), "
        f"or leave these claims to other GPUs."
    )


def _numbers(architecture: str) -> tuple[int, int] | None:
    """Return (9, 0) for sm_90, sm_90a and compute_90; None for what is not CUDA's."""
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")
    if kind not in ("sm", "compute") or not digits.isdecimal():
        return None
    return int(digits[:-1]), int(digits[-1])


def refuse_emulation(name: str, capability: tuple[int, int] | None, dtype: str) -> None:
    """Raise NotSupportedError for a precision that a card has no units for.

    A card without TF32 computes such a plan in float32, which is more exact.
    """
    if capability is None or dtype in ("float32", "tf32"):
        return
    needs = AMPERE if dtype == "bfloat16" else VOLTA
    if capability < needs:
        instead = "float16" if dtype == "bfloat16" and capability >= VOLTA else "float32"
        raise NotSupportedError(
            f"this GPU only emulates {dtype}: the {name} is sm_{capability[0]}{capability[1]}, and "
            f"{dtype} needs sm_{needs[0]}{needs[1]}. Plan with --dtype {instead} for such cards, "
            f"or leave these claims to newer ones."
        )

"""A device that computes on the CPU and behaves like a GPU: late, and with memory that runs out.

Launches wait in a queue and run when a later one pushes them out, or when their rows are asked for.
A buffer is read only then, so one that was used again too early gives wrong rows, and fails here;
after that it is poisoned. Every tensor that a launch makes counts as an allocation, and one of them
can be made to fail, with any error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from embed.engine.cuda import refuse_emulation
from embed.engine.device import Compute, Device, Launch, Rows, Warn

POISON = 0xEE


@dataclass(eq=False)
class SimulatedLaunch:
    """One launch in the queue."""

    device: SimulatedDevice
    buffer: torch.Tensor
    compute: Compute
    sent: bytes
    found: Rows | None = None
    error: BaseException | None = None
    has_run: bool = False
    computing_s: float = 0.0

    def rows(self) -> Rows:
        """Run everything before it and itself."""
        self.device.run_until(self)
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found

    def run(self) -> None:
        """Copy up, compute, copy down."""
        self.has_run = True
        begun = time.perf_counter()
        assert bytes(self.buffer.numpy()) == self.sent, "a buffer was used before its launch ended"
        try:
            with torch.inference_mode(), Allocations(self.device):
                self.found = self.compute(self.buffer.clone()).clone().numpy()
        except RuntimeError as error:
            self.error = error.with_traceback(None)
        finally:
            self.buffer.fill_(POISON)
            self.computing_s = time.perf_counter() - begun


class Allocations(TorchDispatchMode):
    """Counts the tensors that operators make, and raises in place of one of them."""

    def __init__(self, device: SimulatedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not any(each.alias_info is not None for each in func._schema.returns):
            self._device.allocate()
        return func(*args, **(kwargs or {}))


@dataclass
class SimulatedDevice(Device):
    """See above."""

    lag: int = 2
    """How many launches wait before the first must run; 0: none, as if kernels were instant."""
    fails_at: int | None = None
    """The allocation that fails, counted from 1; once."""
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to")
    room: int | None = None
    """How many bytes of a buffer fit; more always run out of memory."""
    capability: tuple[int, int] | None = None
    ahead: int = 3
    name: str = "NVIDIA Simulated"
    free: int | None = None
    allocations: int = 0
    launches: list[SimulatedLaunch] = field(default_factory=list)
    in_flight_max: int = 0
    released: int = 0
    place = torch.device("cpu")

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """Whether it stands for one: then what overflows is computed again where it was."""
        return self.capability is None

    def staging(self, size: int) -> torch.Tensor:
        return torch.full((size,), POISON, dtype=torch.uint8)

    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        launch = SimulatedLaunch(self, buffer, compute, bytes(buffer.numpy()))
        if self.room is not None and len(buffer) > self.room:
            raise self.error()
        self.launches.append(launch)
        waiting = [each for each in self.launches if not each.has_run]
        self.in_flight_max = max(self.in_flight_max, len(waiting))
        if len(waiting) > self.lag:
            waiting[0].run()
        if self.lag == 0 and launch.error is not None:
            raise launch.error
        return launch

    def run_until(self, last: SimulatedLaunch) -> None:
        """Run what waits, in order, up to and including a launch."""
        for each in self.launches:
            if not each.has_run:
                each.run()
            if each is last:
                return

    def allocate(self) -> None:
        """Count an allocation; raise if it is the one that fails."""
        self.allocations += 1
        if self.allocations == self.fails_at:
            raise self.error()

    def free_bytes(self) -> int | None:
        return self.free

    def used_share(self) -> float | None:
        return None

    def peak_bytes(self) -> int:
        return 0

    def synchronize(self) -> None:
        if self.launches:
            self.run_until(self.launches[-1])

    def release(self) -> None:
        self.released += 1

    def check(self, dtype: str, warn: Warn) -> None:
        """Refuse what a card of this capability only emulates."""
        refuse_emulation(self.name, self.capability, dtype)

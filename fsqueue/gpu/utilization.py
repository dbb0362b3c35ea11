"""How busy each GPU is, and its memory, temperature and power.

What is promised: a value is what the driver reported within the last second, or None. Nothing is
made up: a MIG instance has no utilisation of its own, a lost GPU has no values at all.

`get_gpu_utilization` may be called from any thread. With NVML it takes about a millisecond; with
nvidia-smi up to its timeout, so never call it from the thread that renews a lease.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final, TypeAlias

from fsqueue.gpu import nvidia_smi
from fsqueue.gpu.nvml import Nvml, all_gpus

Reading: TypeAlias = dict[str, float | None]

CACHE_TTL_S: Final = 1.0
# After nvidia-smi failed or hung; the next try may cost its whole timeout again.
RETRY_S: Final = 30.0

_CORE_SENSOR: Final = 0  # NVML_TEMPERATURE_GPU
_SMI_FIELDS: Final = (
    "index",
    "uuid",
    "utilization.gpu",
    "memory.used",
    "memory.total",
    "temperature.gpu",
    "power.draw",
)


@cache
def _of_this_process() -> GPUMonitor:
    return GPUMonitor()


def get_gpu_utilization(device_id: int | str) -> Reading:
    """Return `GPUMonitor.get_gpu_utilization` of one monitor shared by the whole process."""
    return _of_this_process().get_gpu_utilization(device_id)


class GPUMonitor:
    """What this machine's GPUs are doing, queried at most once a second for each.

    `backend` is "pynvml", "nvidia-smi" or "none"; with "none" every value is None. `gpus` are those
    found when it was made. `clock` is monotonic, in seconds.
    """

    def __init__(
        self, *, cache_ttl_s: float = CACHE_TTL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._ttl_s = cache_ttl_s
        self._cache: dict[int | str, tuple[float, Reading]] = {}
        self._nvml = Nvml.open()
        self.gpus = all_gpus()
        self._known: set[int | str] = {gpu.index for gpu in self.gpus}
        self._known |= {gpu.uuid for gpu in self.gpus}
        self.backend = "pynvml" if self._nvml else "nvidia-smi" if self.gpus else "none"

    @property
    def available(self) -> bool:
        """Whether there is any GPU."""
        return bool(self.gpus)

    def get_gpu_utilization(self, device_id: int | str) -> Reading:
        """Return compute_percent, memory_percent, temperature (Celsius) and power_watts.

        `device_id` is a UUID, or the index that NVML and nvidia-smi give the GPU.
        """
        if device_id not in self._known:
            return _reading()
        with self._lock:  # held during the query: other threads wait for the same answer
            expires, found = self._cache.get(device_id, (-math.inf, _reading()))
            if self._clock() >= expires:
                self._ask(device_id)
                _, found = self._cache[device_id]
            return dict(found)

    def _ask(self, device_id: int | str) -> None:
        if self._nvml:
            found: dict[int | str, Reading] = {device_id: _ask_nvml(self._nvml, device_id)}
            good_for_s = self._ttl_s
        else:
            found = _ask_smi()
            good_for_s = self._ttl_s if found else max(self._ttl_s, RETRY_S)
            found = dict.fromkeys(self._known, _reading()) | found
        expires = self._clock() + good_for_s
        self._cache.update({device: (expires, reading) for device, reading in found.items()})

    def close(self) -> None:
        """Close the session with the driver; from now on every value is None."""
        with self._lock:
            if self._nvml:
                self._nvml.close()
            self._nvml, self._known, self.gpus, self.backend = None, set(), [], "none"


class Sampler(threading.Thread):
    """Queries one GPU every two seconds, so that no other thread ever waits for a driver.

    It shares one field, `latest`, which is replaced whole.
    """

    def __init__(self, device_id: int | str, *, interval_s: float = 2.0) -> None:
        super().__init__(name="gpu-sampler", daemon=True)
        self.latest: Reading = _reading()
        self._device_id = device_id
        self._interval_s = interval_s

    def run(self) -> None:
        """Sample until the process ends."""
        monitor = GPUMonitor()
        while monitor.available:
            self.latest = monitor.get_gpu_utilization(self._device_id)
            time.sleep(self._interval_s)


def _reading(
    *,
    used: float | None = None,
    total: float | None = None,
    compute: float | None = None,
    temperature: float | None = None,
    watts: float | None = None,
) -> Reading:
    memory = 100 * used / total if used is not None and total else None
    return {
        "compute_percent": _percent(compute),
        "memory_percent": _percent(memory),
        "temperature": temperature,
        "power_watts": watts,
    }


def _percent(value: float | None) -> float | None:
    """Return `value` if it can be a percentage: some drivers answer 2^32 - 1 for "unknown"."""
    return float(value) if value is not None and 0 <= value <= 100 else None


def _ask_nvml(nvml: Nvml, device_id: int | str) -> Reading:
    by = "Index" if isinstance(device_id, int) else "UUID"
    handle = nvml.ask(f"DeviceGetHandleBy{by}", device_id)
    if handle is None:
        return _reading()
    rates = nvml.ask("DeviceGetUtilizationRates", handle)
    memory = nvml.ask("DeviceGetMemoryInfo", handle)  # used/total; rates.memory is bandwidth
    milliwatts = nvml.ask("DeviceGetPowerUsage", handle)
    celsius = nvml.ask("DeviceGetTemperatureV", handle, _CORE_SENSOR)
    if celsius is None:  # a driver older than the call; CUDA 14 removes the one it has
        celsius = nvml.ask("DeviceGetTemperature", handle, _CORE_SENSOR)
    return _reading(
        used=memory.used if memory else None,
        total=memory.total if memory else None,
        compute=rates.gpu if rates else None,
        temperature=None if celsius is None else float(celsius),
        watts=None if milliwatts is None else milliwatts / 1000,
    )


def _ask_smi() -> dict[int | str, Reading]:
    found: dict[int | str, Reading] = {}
    for row in nvidia_smi.query(*_SMI_FIELDS):
        values = dict(zip(_SMI_FIELDS, row, strict=True))
        if values["index"].isdecimal():
            reading = _smi_reading(values)
            found |= {int(values["index"]): reading, values["uuid"]: reading}
    return found


def _smi_reading(values: Mapping[str, str]) -> Reading:
    return _reading(
        used=_number(values["memory.used"]),
        total=_number(values["memory.total"]),
        compute=_number(values["utilization.gpu"]),
        temperature=_number(values["temperature.gpu"]),
        watts=_number(values["power.draw"]),
    )


def _number(text: str) -> float | None:
    """Return the number, or None for what nvidia-smi says instead: [N/A], [Unknown Error], ERR!"""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

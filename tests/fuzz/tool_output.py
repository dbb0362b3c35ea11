"""The output of squeue and nvidia-smi: valid rows, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from fsqueue.gpu import nvidia_smi
from fsqueue.gpu.nvml import Nvml, all_gpus
from fsqueue.gpu.utilization import GPUMonitor
from fsqueue.slurm.allocation import parse_rows, parse_time_left
from tests.fuzz.sandbox import directory, is_usable, pick, put


def _rows(data: bytes) -> None:
    for name, row in parse_rows(data.decode("utf-8", "replace")).items():
        assert name and row.state and row.restarts >= 0
        assert not set(" \n") & set(name)


def _time_left(data: bytes) -> None:
    left_s = parse_time_left(data.decode("utf-8", "replace"))
    assert left_s is None or (is_usable(left_s) and left_s >= 0)


def _nvidia_smi(data: bytes) -> None:
    put(str(directory() / "answer"), data)
    with patch.object(nvidia_smi, "query", _query), patch.object(Nvml, "open", lambda: None):
        for gpu in all_gpus():
            assert gpu.index >= 0 and (gpu.memory_mib is None or gpu.memory_mib >= 0)
        monitor = GPUMonitor()
        for gpu in monitor.gpus:
            reading = monitor.get_gpu_utilization(gpu.index)
            assert all(value is None or is_usable(value) for value in reading.values())


def _query(*fields: str, timeout_s: float = 5.0) -> list[list[str]]:
    """Parse the bytes as the output of nvidia-smi."""
    text = (directory() / "answer").read_bytes().decode("utf-8", "replace")
    return nvidia_smi.parse(text, len(fields))


READERS: tuple[Callable[[bytes], None], ...] = (_rows, _time_left, _nvidia_smi)
SEEDS = (
    b"\x0017_3                RUNNING              0\n18   PENDING  2\n",
    b"\x011-02:03:04",
    b"\x01UNLIMITED",
    b"\x020, GPU-aaaa-1, NVIDIA GeForce RTX 4090, 24564\n1, GPU-b, [N/A], [N/A]\n",
    b"\x020, GPU-aaaa-1, 50, 1000, 24564, 60, 300.5\n",
    b'\x020, "GPU, quoted", NVIDIA, 1\n',
)


def run(data: bytes) -> None:
    """Let the first byte choose whose answer the rest is."""
    chosen, data = pick(data, len(READERS))
    READERS[chosen](data)

"""What GPUs can do: their CUDA compute capability, by the model's name.

Used while planning, often on a machine without the card. The numbers are NVIDIA's
(developer.nvidia.com/cuda-gpus). Half precision runs on tensor cores from 7.0 (float16) and 8.0
(bfloat16) on.
"""

from __future__ import annotations

from typing import Final

from fsqueue.gpu import nvml
from fsqueue.gpu.memory import memory_gib
from fsqueue.gpu.weights import mig_instance, short_name
from fsqueue.handler import CPU, PlannedGpu

_MODELS: Final = {
    (6, 0): "P100",
    (7, 0): "V100, V100 16GB, V100 32GB",
    (7, 5): "T4, TITAN RTX, RTX 2060, RTX 2060 SUPER, RTX 2070, RTX 2070 SUPER, RTX 2080, "
            "RTX 2080 SUPER, RTX 2080 Ti, RTX 6000, RTX 8000",
    (8, 0): "A100, A30",
    (8, 6): "RTX 3050, RTX 3060, RTX 3060 Ti, RTX 3070, RTX 3070 Ti, RTX 3080, RTX 3080 Ti, "
            "RTX 3090, RTX 3090 Ti, RTX A2000, RTX A4000, RTX A4500, RTX A5000, RTX A6000, A10, "
            "A10G, A40",
    (8, 9): "RTX 4060, RTX 4060 Ti, RTX 4070, RTX 4070 SUPER, RTX 4070 Ti, RTX 4070 Ti SUPER, "
            "RTX 4080, RTX 4080 SUPER, RTX 4090, RTX 4090 D, RTX 4000 Ada, RTX 5000 Ada, "
            "RTX 6000 Ada, L4, L40, L40S",
    (9, 0): "H100, H200, GH200",
    (10, 0): "B200",
    (12, 0): "RTX 5050, RTX 5060, RTX 5060 Ti, RTX 5070, RTX 5070 Ti, RTX 5080, RTX 5090, "
             "RTX PRO 6000 Blackwell",
}  # fmt: skip
CAPABILITIES: Final = {
    name: capability for capability, names in _MODELS.items() for name in names.split(", ")
}


def planned_gpu(model: str, memory: float | None = None) -> PlannedGpu:
    """Return what is known of a model that a person or a driver names; a MIG slice is its card."""
    instance = mig_instance(model)
    name = short_name(instance.card if instance else model)
    return PlannedGpu(name, CAPABILITIES.get(name), memory or memory_gib(model))


def local_gpus() -> list[PlannedGpu]:
    """Return this machine's visible GPUs; a CPU if there are none."""
    found = [planned_gpu(gpu.name, gpu.memory_gib) for gpu in nvml.visible_gpus()]
    return found or [PlannedGpu(CPU, None)]

"""Choose the device of this process."""

from __future__ import annotations

import os

import torch

from embed.engine.cuda import Cuda
from embed.engine.device import Cpu, Device, Warn
from embed.engine.device_errors import typed_errors
from embed.engine.mps import Mps
from fsqueue import NotSupportedError


def choose_device(warn: Warn) -> Device:
    """Return the first visible GPU, else the CPU; or the GPU of a Mac, where FSQUEUE_DEVICE=mps.

    Raises NotSupportedError if FSQUEUE_DEVICE asks for what is not here.
    """
    if asked := os.environ.get("FSQUEUE_DEVICE"):
        if asked != "mps":
            raise NotSupportedError(
                f"FSQUEUE_DEVICE={asked} is unknown: it can be `mps`, the GPU of a Mac. Without it "
                f"the first visible GPU or else the CPU is used."
            )
        return Mps()
    with typed_errors():
        if Cuda.is_here():
            return Cuda()
    if os.path.exists("/dev/nvidia0") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        warn(
            f"this machine has an NVIDIA GPU that PyTorch {torch.__version__} cannot use; using "
            f"the CPU. Install a CUDA build that the driver supports, or choose the CPU "
            f"explicitly: CUDA_VISIBLE_DEVICES="
        )
    return Cpu()

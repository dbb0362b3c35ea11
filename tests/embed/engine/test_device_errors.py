"""What every known error of a device means, by type, by code and by words."""

from __future__ import annotations

import re

import pytest
import torch

from embed.engine import device_errors
from embed.engine.device_errors import KNOWN, Known, Meaning, meaning_of, typed, typed_errors
from fsqueue import NodeTrouble, NotSupportedError, WorkerBroken
from fsqueue.worker.attempts.verdicts import cause_of, verdict

MESSAGES = {
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of": "no memory",
    "CUDA error: out of memory": "no memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "no memory",
    "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory:": (
        "no memory"
    ),
    "CUDA error: device-side assert triggered": "context lost",
    "CUDA error: an illegal memory access was encountered": "context lost",
    "CUDA error: an illegal instruction was encountered": "context lost",
    "CUDA error: misaligned address": "context lost",
    "CUDA error: operation not supported on global/shared address space": "context lost",
    "CUDA error: invalid program counter": "context lost",
    "CUDA error: unspecified launch failure": "context lost",
    "CUDA error: the launch timed out and was terminated": "context lost",
    "CUDA error: context is destroyed": "context lost",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb,": (
        "context lost"
    ),
    "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx": "context lost",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": "context lost",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": "context lost",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR": "context lost",
    "CUDA error: hardware stack error": "card lost",
    "CUDA error: uncorrectable ECC error encountered": "card lost",
    "CUDA error: uncorrectable NVLink error detected during the execution": "card lost",
    "GPU is lost.  Reboot the system to recover this GPU": "card lost",
    "NVRM: GPU has fallen off the bus": "card lost",
    "CUDA error: all CUDA-capable devices are busy or unavailable": "card lost",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": "card lost",
    "CUDA error: no CUDA-capable device is detected": "card lost",
    "No CUDA GPUs are available": "card lost",
    "CUDA error: initialization error": "card lost",
    "CUDA error: OS call failed or operation not supported on this OS": "card lost",
    "CUDA error: system not yet initialized": "card lost",
    "CUDA error: MPS client failed to connect to the MPS control daemon": "card lost",
    "CUDA error: the MPS server is not ready to accept new MPS client requests": "card lost",
    "CUDA error: the maximum number of MPS clients has been reached": "card lost",
    "CUDA error: MPS client has been terminated": "card lost",
    "CUDA error: unknown error": "card lost",
    "CUDA error: no kernel image is available for execution on the device": "not supported",
    "CUDA error: device kernel image is invalid": "not supported",
    "CUDA error: the provided PTX was compiled with an unsupported toolchain.": "not supported",
    "CUDA error: PTX JIT compiler library not found": "not supported",
    "CUDA driver version is insufficient for CUDA runtime version": "not supported",
    "CUDA error: system has unsupported display driver / cuda driver combination": "not supported",
    "CUDA error: forward compatibility was attempted on non supported HW": "not supported",
    "The NVIDIA driver on your system is too old (found version 11040).": "not supported",
    "Torch not compiled with CUDA enabled": "not supported",
    "The operator 'aten::segment_reduce' is not currently implemented for the MPS device.": (
        "not supported"
    ),
    "FlashAttention only supports Ampere GPUs or newer.": "not supported",
    "Flash Attention requires sm80 or newer": "not supported",
    "USE_FLASH_ATTENTION was not enabled for build: not compiled with flash attention.": (
        "not supported"
    ),
    "No available kernel. Aborting execution.": "not supported",
    "CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling `cublasLt": "not supported",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmStridedBatchedEx": (
        "not supported"
    ),
    "cuDNN error: CUDNN_STATUS_ARCH_MISMATCH": "not supported",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED": "not supported",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)": "unknown",
}
"""Messages as CUDA and PyTorch write them."""
RAISED = {
    Meaning.CONTEXT_LOST: WorkerBroken,
    Meaning.CARD_LOST: NodeTrouble,
    Meaning.NOT_SUPPORTED: NotSupportedError,
}


class AcceleratorError(RuntimeError):
    """What torch.AcceleratorError is where CUDA is: with a code, and words for people."""

    def __init__(self, code: int) -> None:
        super().__init__("something went wrong on the device")
        self.error_code = code


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_means_what_the_table_says(message: str) -> None:
    error = RuntimeError(f"{message}\nCUDA kernel errors might be asynchronously reported")
    assert meaning_of(error) == MESSAGES[message]


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.words)
def test_every_row_of_the_table_has_a_message_that_it_decides(known: Known) -> None:
    decided = [
        message
        for message in MESSAGES
        if next((each for each in KNOWN if each.words in message.lower()), None) is known
    ]
    assert decided


@pytest.mark.parametrize("known", [each for each in KNOWN if each.code], ids=lambda k: k.words)
def test_the_code_decides_whatever_the_words(known: Known) -> None:
    assert known.code is not None
    assert meaning_of(AcceleratorError(known.code)) == known.meaning


def test_the_type_decides_first() -> None:
    assert meaning_of(torch.OutOfMemoryError("device-side assert")) == Meaning.NO_MEMORY
    assert meaning_of(MemoryError()) == Meaning.NO_MEMORY
    assert meaning_of(KeyError("out of memory")) == Meaning.UNKNOWN, "it is not a device's"
    assert meaning_of(AcceleratorError(1)) == Meaning.UNKNOWN, "an invalid value is ours"


@pytest.mark.parametrize("meaning", Meaning)
def test_what_is_raised_has_the_documented_consequences(meaning: Meaning) -> None:
    """The table of the module agrees with that of fsqueue.worker.attempts.verdicts."""
    table = (device_errors.__doc__ or "").partition("because\n")[2]
    rows = {cells[0]: cells[1:] for line in table.splitlines()
            if len(cells := re.split(r" {2,}", line.strip())) == 5}  # fmt: skip
    raised, claim, worker, _why = rows[meaning.value]
    message = next(text for text, found in MESSAGES.items() if found == meaning)
    error = RuntimeError(message)
    better = typed(error)
    assert type(better) is RAISED.get(meaning, type(None))
    if better is not None:
        assert type(better).__name__ == raised and message.splitlines()[0] in str(better)
    if meaning is not Meaning.NO_MEMORY:
        found = verdict(cause_of(better or error, running=True))
        assert (found.claim, found.worker) == (claim, worker)


def test_errors_are_raised_as_what_they_mean_with_their_cause() -> None:
    with pytest.raises(NodeTrouble, match="nvidia-smi -q") as found, typed_errors():
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    assert "ECC" in str(found.value.__cause__)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shapes")):
        with pytest.raises(type(error)) as same, typed_errors():
            raise error
        assert same.value is error

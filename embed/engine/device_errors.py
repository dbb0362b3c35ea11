"""Decide what an error of a GPU means: for the batch, the claim, the worker and the card.

An error is recognised by its type and code first, by its words second: PyTorch reports some as
plain RuntimeErrors. The table below is tested row by row; what follows for a claim and its worker
is what `fsqueue.worker.attempts.verdicts` says of the exception that is raised.

    meaning        raised             claim     worker      because
    -------------  -----------------  --------  ----------  -------
    no memory      -                  goes on   go on       the batch is divided and run again
    context lost   WorkerBroken       charged   stop        a kernel failed, maybe by the claim
    card lost      NodeTrouble        put back  stop        the card, its driver, another process
    not supported  NotSupportedError  put back  leave kind  this PyTorch or card lacks kernels
    unknown        (as it was)        charged   go on       nothing shows that it is the card's

What this module does not know: batches, and devices other than by what they raise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from fsqueue import NodeTrouble, NotSupportedError, WorkerBroken


class Meaning(StrEnum):
    """What an error says about the claim, the process and the card."""

    NO_MEMORY = "no memory"
    CONTEXT_LOST = "context lost"
    """Nothing that this process does on the GPU afterwards can succeed."""
    CARD_LOST = "card lost"
    NOT_SUPPORTED = "not supported"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Known:
    """A known error: its words in lower case, and the CUDA runtime's code if it has one."""

    words: str
    meaning: Meaning
    code: int | None = None


KNOWN: Final = (
    Known("out of memory", Meaning.NO_MEMORY, 2),
    Known("alloc_failed", Meaning.NO_MEMORY),  # cuBLAS, cuDNN
    Known("can't allocate memory", Meaning.NO_MEMORY),  # the CPU's allocator
    Known("device-side assert", Meaning.CONTEXT_LOST, 710),
    Known("illegal memory access", Meaning.CONTEXT_LOST, 700),
    Known("illegal instruction", Meaning.CONTEXT_LOST, 715),
    Known("misaligned address", Meaning.CONTEXT_LOST, 716),
    Known("not supported on global/shared address space", Meaning.CONTEXT_LOST, 717),
    Known("invalid program counter", Meaning.CONTEXT_LOST, 718),
    Known("unspecified launch failure", Meaning.CONTEXT_LOST, 719),
    Known("launch timed out", Meaning.CONTEXT_LOST, 702),
    Known("context is destroyed", Meaning.CONTEXT_LOST, 709),
    Known("cublas_status_execution_failed", Meaning.CONTEXT_LOST),
    Known("cublas_status_internal_error", Meaning.CONTEXT_LOST),
    Known("cublas_status_not_initialized", Meaning.CONTEXT_LOST),
    Known("cudnn_status_execution_failed", Meaning.CONTEXT_LOST),
    Known("cudnn_status_internal_error", Meaning.CONTEXT_LOST),
    Known("hardware stack error", Meaning.CARD_LOST, 714),
    Known("uncorrectable ecc", Meaning.CARD_LOST, 214),
    Known("uncorrectable nvlink", Meaning.CARD_LOST, 220),
    Known("gpu is lost", Meaning.CARD_LOST),
    Known("fallen off the bus", Meaning.CARD_LOST),
    Known("busy or unavailable", Meaning.CARD_LOST, 46),
    Known("no cuda-capable device", Meaning.CARD_LOST, 100),
    Known("no cuda gpus are available", Meaning.CARD_LOST),
    Known("initialization error", Meaning.CARD_LOST, 3),
    Known("os call failed", Meaning.CARD_LOST, 304),
    Known("system not yet initialized", Meaning.CARD_LOST, 802),
    Known("mps client failed to connect", Meaning.CARD_LOST, 805),
    Known("mps server is not ready", Meaning.CARD_LOST, 807),
    Known("maximum number of mps clients", Meaning.CARD_LOST, 808),
    Known("mps client has been terminated", Meaning.CARD_LOST, 810),
    Known("unknown error", Meaning.CARD_LOST, 999),
    Known("no kernel image is available", Meaning.NOT_SUPPORTED, 209),
    Known("device kernel image is invalid", Meaning.NOT_SUPPORTED, 200),
    Known("compiled with an unsupported toolchain", Meaning.NOT_SUPPORTED, 222),
    Known("ptx jit compiler library not found", Meaning.NOT_SUPPORTED, 221),
    Known("driver version is insufficient", Meaning.NOT_SUPPORTED, 35),
    Known("unsupported display driver", Meaning.NOT_SUPPORTED, 803),
    Known("forward compatibility was attempted", Meaning.NOT_SUPPORTED, 804),
    Known("driver on your system is too old", Meaning.NOT_SUPPORTED),
    Known("not compiled with cuda", Meaning.NOT_SUPPORTED),
    Known("not currently implemented for the mps device", Meaning.NOT_SUPPORTED),
    Known("flashattention only supports", Meaning.NOT_SUPPORTED),
    Known("flash attention requires", Meaning.NOT_SUPPORTED),
    Known("not compiled with flash attention", Meaning.NOT_SUPPORTED),
    Known("no available kernel", Meaning.NOT_SUPPORTED),
    Known("cublas_status_arch_mismatch", Meaning.NOT_SUPPORTED),
    Known("cublas_status_not_supported", Meaning.NOT_SUPPORTED),
    Known("cudnn_status_arch_mismatch", Meaning.NOT_SUPPORTED),
    Known("cudnn_status_not_supported", Meaning.NOT_SUPPORTED),
)
"""Earlier rows win. Codes are those of cudaError_t; the words are CUDA's or PyTorch's own."""
BY_CODE: Final = {known.code: known.meaning for known in KNOWN if known.code is not None}


def meaning_of(error: BaseException) -> Meaning:
    """Return what an error means; UNKNOWN for one that is not a device's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Meaning.NO_MEMORY
    if not isinstance(error, RuntimeError):
        return Meaning.UNKNOWN
    code = getattr(error, "error_code", None)  # of torch.AcceleratorError, new in PyTorch 2.8
    if code in BY_CODE:
        return BY_CODE[code]
    text = str(error).lower()
    found = (known.meaning for known in KNOWN if known.words in text)
    return next(found, Meaning.UNKNOWN)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device, or the machine, ran out of memory."""
    return meaning_of(error) is Meaning.NO_MEMORY


def typed(error: BaseException) -> Exception | None:
    """Return the exception to raise for an error; None if it is to be raised as it is."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    match meaning_of(error):
        case Meaning.CONTEXT_LOST:
            return WorkerBroken(
                f"this GPU's context is unusable ({line}): a kernel failed, by a defect of the "
                f"software, of the input or of the card. This worker stops. If other claims fail "
                f"on this card, too, see: nvidia-smi -q, dmesg"
            )
        case Meaning.CARD_LOST:
            return NodeTrouble(
                f"this GPU cannot be used ({line}): the card or its driver is faulty, or another "
                f"process has it to itself. This worker stops. See: nvidia-smi -q, dmesg"
            )
        case Meaning.NOT_SUPPORTED:
            return NotSupportedError(
                f"this GPU or its driver does not fit PyTorch {torch.__version__} ({line}). "
                f"Install a build of PyTorch for this card and driver, plan with --dtype float32, "
                f"or leave these claims to other GPUs."
            )
    return None


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise what `typed` returns in place of a device's errors; out of memory passes unchanged."""
    try:
        yield
    except RuntimeError as error:
        better = typed(error)
        if better is None:
            raise
        raise better from error

"""A GPU without a GPU: the CUDA device on fake tensors, and a record of all that it is asked to do.

Fake tensors have a device, a type and a shape, and run every operator's own checks of these; they
hold no numbers. So what is counted here is what a real card would be asked to do, by the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from embed.engine.cuda import Cuda
from embed.engine.device import Compute, Launch, Rows
from embed.models.dnabert.network import DnabertEncoder
from embed.models.dnabert.shape import DnabertShape
from embed.models.esm2.network import Esm2Encoder
from embed.models.packed.products import DTYPES

SIZES = {"8M": (6, 320, 20), "650M": (33, 1280, 20), "small": (2, 64, 4)}
"""Layers, width and heads of ESM-2."""
FREE = "view slice select unbind split transpose permute unsqueeze expand alias detach".split()
FREE += "t as_strided squeeze empty new_empty empty_like unflatten flatten diagonal".split()
FREE += "split_with_sizes view_as_complex view_as_real _unsafe_view lift_fresh".split()
"""Operators that launch no kernel."""
WAITING = "_local_scalar_dense item nonzero unique _unique2 masked_select is_nonzero".split()
"""Operators whose result the CPU must see."""


class Record(TorchDispatchMode):
    """The operators that a device is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.up = self.down = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        before = {each.device.type for each in _tensors(args)}
        after = {each.device.type for each in _tensors([found])}
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.waits.append(name)
        if name == "to" and found is args[0]:
            return found
        if name in ("to", "_to_copy", "copy_") and {"cpu", "cuda"} <= before | after:
            is_up = after == {"cuda"}
            self.up += is_up
            self.down += not is_up
            if not (kwargs.get("non_blocking") or any(each is True for each in args)):
                self.waits.append(f"{name} {'up' if is_up else 'down'}")
        elif "cuda" in before | after and name not in FREE:
            self.kernels.append(name)
        return found


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class Indexing(TorchFunctionMode):
    """Indexes and copies by operators: PyTorch's own ways want a driver in builds for CPUs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return indexed(*args)
        if func is torch.Tensor.__setitem__:
            target, index, value = args
            found = indexed(target, index)
            if isinstance(value, torch.Tensor):
                return torch.ops.aten.copy_(found, value)
            return found.fill_(value)
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def indexed(x: torch.Tensor, index: Any) -> torch.Tensor:
    """Return x[index], for indices with at most one tensor or list."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        at = next(n for n, part in enumerate(parts) if part is Ellipsis)
        missing = x.dim() - sum(part is not None for part in parts) + 1
        parts[at : at + 1] = [slice(None)] * missing
    dim = 0
    for part in parts:
        if part is None:
            x = x.unsqueeze(dim)
            dim += 1
        elif isinstance(part, int):
            x = x.select(dim, part)
        elif isinstance(part, slice):
            if part != slice(None):
                x = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1)
            dim += 1
        else:
            x = torch.ops.aten.index(x, [None] * dim + [part])
            dim += 1
    return x


class FakeCuda(Cuda):
    """The CUDA device, of any capability, where nothing runs."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.place = torch.device("cuda:0")
        self.capability = capability
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.records: list[Record] = []

    @property
    def name(self) -> str:
        return f"fake sm_{self.capability[0]}{self.capability[1]}"  # type: ignore[index]

    def staging(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def launch(self, buffer: torch.Tensor, compute: Compute, *, tf32: bool = False) -> Launch:
        with self.mode, Indexing():
            fake = self.mode.from_tensor(buffer)
            self.records.append(Record())
            with self.records[-1]:
                return super().launch(fake, compute, tf32=tf32)

    def _pinned_like(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.empty(rows.shape, dtype=rows.dtype)

    def _recorded_event(self) -> Any:
        return _Passed()

    def release(self) -> None:
        pass

    def used_share(self) -> float | None:
        return None

    def peak_bytes(self) -> int:
        return 0

    def reach(self, dtype: str) -> float:
        return 0.0


class _Passed:
    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def elapsed_time(self, later: Any) -> float:
        return 0.0


@contextmanager
def numbers(device: FakeCuda) -> Iterator[None]:
    """Let `Launch.rows` of a fake device return rows of zeros."""
    from embed.engine import cuda

    real = cuda._Enqueued.rows

    def rows(self: Any) -> Rows:
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            return torch.zeros(tuple(self._target.shape)).numpy()

    cuda._Enqueued.rows = rows  # type: ignore[method-assign]
    try:
        yield
    finally:
        cuda._Enqueued.rows = real  # type: ignore[method-assign]


def esm2(device: FakeCuda, size: str, dtype: str) -> Esm2Encoder:
    """Return an ESM-2 of a published shape on a fake device."""
    from transformers import EsmConfig, EsmModel

    layers, width, heads = SIZES[size]
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = EsmModel(config, add_pooling_layer=False).eval()
    model.rotary_embeddings.inv_freq = torch.rand(width // heads // 2)
    with device.mode, Indexing():
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                on_card = torch.empty(weight.shape, dtype=DTYPES[dtype], device="cuda:0")
                setattr(module, name, torch.nn.Parameter(on_card, requires_grad=False))
        return Esm2Encoder(model)


def dnabert(device: FakeCuda, dtype: str) -> DnabertEncoder:
    """Return a DNABERT-S of the published shape on a fake device."""
    shape = DnabertShape(4096, 768, 12, 12, 3072, 2, 1e-12)
    with device.mode, Indexing():
        weights = {
            name: torch.empty(size, dtype=DTYPES[dtype], device="cuda:0")
            for name, size in shape.tensors().items()
        }
        return DnabertEncoder(shape, weights)


def lengths(count: int, longest: int, shortest: int) -> Sequence[int]:
    """Return evenly spread lengths, the longest first."""
    return [longest - (longest - shortest) * n // max(1, count - 1) for n in range(count)]

"""The GPU of a Mac without a Mac: its operators on fake tensors, and its numbers from a CPU."""

from __future__ import annotations

from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from embed.engine.mps import Mps
from embed.models.dnabert.network import DnabertEncoder
from embed.models.dnabert.shape import DnabertShape
from embed.models.esm2.network import Esm2Encoder
from tests.support.fake_cuda import Indexing

COMPOSITE = ("CompositeExplicitAutograd", "CompositeImplicitAutograd")


class Asked(TorchDispatchMode):
    """The operators that are asked for on the GPU, each with the types of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for each in returned if isinstance(returned, tuple | list) else (returned,):
            if isinstance(each, torch.Tensor) and each.device.type == "mps":
                name = func._schema.name.partition("::")[2]
                overload = func._schema.overload_name
                self.found.add((f"{name}.{overload}" if overload else name, each.dtype))
        return returned


class Whole(TorchFunctionMode):
    """Operators by their names that a driver would divide or convert."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.scaled_dot_product_attention, functional.log_softmax):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class FakeMps(Mps):
    """The GPU of a Mac on fake tensors: nothing is computed, every operator is seen."""

    is_proven = True

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.asked = Asked()
        self._peak = 0

    @property
    def name(self) -> str:
        return "Apple Fake"

    def _up(self, buffer: torch.Tensor) -> torch.Tensor:
        return torch.empty(buffer.shape, dtype=buffer.dtype, device="mps")

    def _down(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.device.type == "mps" and rows.dtype == torch.float32
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            return torch.zeros(tuple(rows.shape))

    def launch(self, *given: Any, **options: Any) -> Any:
        edges = cycle((0, 1))  # where segments begin, and then where they end

        def as_list(tensor: torch.Tensor) -> list[int]:
            first = next(edges)
            return list(range(first, first + len(tensor)))

        lists = patch.object(FakeTensor, "tolist", as_list)
        with lists, self.mode, Indexing(), Whole(), self.asked:
            return super().launch(*given, **options)


class MpsOnCpu(Mps):
    """The GPU of a Mac whose numbers are the CPU's, or `wrong` by as much."""

    place = torch.device("cpu")

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.wrong = wrong
        self.checked: list[str] = []

    def _down(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.wrong * rows.abs().max()


def esm2(device: FakeMps) -> Esm2Encoder:
    """Return an ESM-2 of two layers there."""
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=256, position_embedding_type="rotary",
        token_dropout=True, emb_layer_norm_before=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = EsmModel(config, add_pooling_layer=False).eval()
    model.rotary_embeddings.inv_freq = torch.rand(8)
    with device.mode, Indexing():
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                there = torch.nn.Parameter(torch.empty(weight.shape, device="mps"), False)
                setattr(module, name, there)
        return Esm2Encoder(model)


def dnabert(device: FakeMps) -> DnabertEncoder:
    """Return a DNABERT of two layers there."""
    shape = DnabertShape(64, 64, 2, 4, 256, 2, 1e-12)
    with device.mode, Indexing():
        return DnabertEncoder(
            shape, {n: torch.empty(size, device="mps") for n, size in shape.tensors().items()}
        )


@cache
def _functions() -> dict[str, dict[str, Any]]:
    import torchgen

    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    functions = yaml.load(path.read_text(), yaml.CSafeLoader)
    return {each["func"].partition("(")[0]: each for each in functions}


def runs_on_mps(name: str) -> bool:
    """Return whether this PyTorch has an operator, as `mm` or `view.dtype`, for MPS."""
    function = _functions()[name]
    if "structured_delegate" in function:
        function = _functions()[function["structured_delegate"]]
    keys = {key.strip() for keys in function.get("dispatch", {}) for key in keys.split(",")}
    return not keys or "MPS" in keys or bool(keys & set(COMPOSITE))

"""Keep a model of transformers in host memory, with one layer at a time on a device.

Hooks replace the weights of a layer by copies on the device before it runs, and put the others back
afterwards, also if it fails. A layer is an item of a list of modules; the list of experts in it is
part of it. The table of input embeddings, the largest tensor of many models, is treated like a
layer. All else is small, and some models use it without calling the module that has it (DeBERTa's
positions): it is on the device while the whole model runs.

One of the doors to torch. What this module does not know: architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn


def stream_modules(model: Any, device: torch.device) -> None:
    """Let a model that is in host memory compute on a device, its layers one by one."""
    table = model.get_input_embeddings().weight
    owners = [each for each in model.modules() if _has(each, table)]  # T5 has two
    visitors = [*_layers(model), *owners]
    tensors = {id(tensor) for each in visitors for _, _, tensor in _slots(each.modules())}
    for each in visitors:
        _Visit(list(each.modules()), device).hook_into(each)
    rest = _Visit(list(model.modules()), device, leave_out=tensors)
    rest.hook_into(model)


def _has(module: nn.Module, tensor: torch.Tensor) -> bool:
    return any(each is tensor for each in module.parameters(recurse=False))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the items of the outermost lists of modules."""
    for child in module.children():
        yield from _items(child) if isinstance(child, nn.ModuleList) else _layers(child)


def _items(modules: nn.ModuleList) -> Iterator[nn.Module]:
    for each in modules:
        if isinstance(each, nn.ModuleList):  # a list is not called
            yield from _items(each)
        else:
            yield each


def _slots(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yield what holds a tensor, under which name, and the tensor."""
    for module in modules:
        yield from ((module, *each) for each in module.named_parameters(recurse=False))
        yield from ((module, *each) for each in module.named_buffers(recurse=False))


class _Visit:
    """The tensors of some modules, which visit a device together."""

    def __init__(
        self, modules: list[nn.Module], device: torch.device, leave_out: Iterable[int] = ()
    ) -> None:
        """`leave_out` are the identities of tensors that stay where they are."""
        self._device = device
        self._home = [slot for slot in _slots(modules) if id(slot[2]) not in leave_out]

    def hook_into(self, module: nn.Module) -> None:
        """Begin the visit before a module runs, and end it afterwards."""
        module.register_forward_pre_hook(lambda *_: self._begin(), prepend=True)
        module.register_forward_hook(lambda *_: self._end(), always_call=True)

    def _begin(self) -> None:
        for module, name, tensor in self._home:
            copy = tensor.detach().to(self._device)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(copy, requires_grad=False) if is_parameter else copy)

    def _end(self) -> None:
        for module, name, tensor in self._home:
            setattr(module, name, tensor)

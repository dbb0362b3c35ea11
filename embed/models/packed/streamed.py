"""Keep a model in host memory, with one layer at a time on a device.

For a pass over few sequences beside another model that has the device's memory. A layer's weights
are copied when it is its turn, used for all the sequences, and dropped, so that the device never
holds two of them. The numbers are those of a model that is loaded there: the same kernels get the
same weights.

Networks whose layers are functions of tensors use `place_layer`; for the modules of transformers,
see `generic/streamed_modules.py`.

One of the doors to torch. What this module does not know: models and their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Weights = Mapping[str, torch.Tensor]
LayerMap = Callable[..., torch.Tensor]
"""Turns a sequence's states, and what else it needs, into the next states."""
Build = Callable[[Weights], LayerMap]


@dataclass(frozen=True, slots=True)
class Streamed:
    """A place for a model: host memory, from where its layers visit a device."""

    device: torch.device


class NotStreamed(Exception):
    """A model's code does not work with its layers on a device one by one."""


Place: TypeAlias = torch.device | Streamed


def device_of(place: Place) -> torch.device:
    """Return where the model of a place computes."""
    return place.device if isinstance(place, Streamed) else place


def place_layer(weights: Weights, place: Place, build: Build) -> LayerMap:
    """Return a layer of these weights, which `build` makes of them where they will be used."""
    if isinstance(place, Streamed):
        return StreamedLayer(weights, place.device, build)
    return build(moved(weights, place))


def moved(weights: Weights, device: torch.device) -> Weights:
    """Return weights on a device."""
    return {name: tensor.to(device) for name, tensor in weights.items()}


class StreamedLayer:
    """A layer whose weights are in host memory, and on a device only while it computes."""

    def __init__(self, weights: Weights, device: torch.device, build: Build) -> None:
        self._weights, self._device, self._build = weights, device, build

    def on_device(self) -> LayerMap:
        """Return the layer with its weights on the device, where they stay as long as it does."""
        return self._build(moved(self._weights, self._device))

    def __call__(self, *given: Any) -> torch.Tensor:
        return self.on_device()(*given)


def apply_in_turn(
    layer: LayerMap, states: list[torch.Tensor], given: Sequence[Sequence[Any]]
) -> None:
    """Replace the states of each sequence by what a layer makes of them and of `given`.

    A streamed layer is copied to the device once.
    """
    here = layer.on_device() if isinstance(layer, StreamedLayer) else layer
    for number, rest in enumerate(given):
        states[number] = here(states[number], *rest)

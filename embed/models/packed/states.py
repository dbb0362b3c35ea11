"""Hidden states of a packed batch, and their collection from chosen layers.

One of the doors to torch. What this module does not know: models, and how states are pooled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from embed.models.conventions.convention import Layers


@dataclass(frozen=True, slots=True)
class States:
    """The states of every token of a batch, its sequences end to end, on a device."""

    rows: torch.Tensor
    """(tokens, width); begin and end tokens are included."""
    bounds: torch.Tensor
    """(sequences + 1,), integers on the same device: sequence i has rows bounds[i] to
    bounds[i + 1]."""

    def split(self) -> list[torch.Tensor]:
        """Return the states of each sequence; this waits for the device."""
        return list(self.rows.split(self.bounds.diff().tolist()))


class LayerStates:
    """The states of the chosen layers, collected while a model runs."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._found: dict[int, torch.Tensor] = {}
        self._sum: torch.Tensor | None = None

    def add(self, number: int, states: torch.Tensor) -> None:
        """Take a layer's states, if it is a chosen one. They must not be changed afterwards."""
        count = self._layers.numbers.count(number)
        if not count:
            return
        if not self._layers.averaged:
            self._found[number] = states
        elif self._sum is None:
            self._sum = states.float() * count
        else:
            self._sum += states.float() * count

    def finish(self, last: torch.Tensor) -> torch.Tensor:
        """Return the chosen states, (tokens, width), or `last` if none were chosen.

        Averages are in float32.
        """
        if self._sum is not None:
            return self._sum / len(self._layers.numbers)
        parts = [self._found[number] for number in self._layers.numbers]
        return torch.cat(parts, -1) if parts else last

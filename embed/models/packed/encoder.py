"""What every loaded model is: a network that runs on packs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from embed.models.conventions.convention import LAST, Layers
from embed.models.packed.kernels import Kernel, kernel_for
from embed.models.packed.layout import Frame, Ids
from embed.models.packed.pack import Pack
from embed.models.packed.states import States


class PackedEncoder(ABC):
    """A loaded model of any family."""

    width: int
    """How many numbers a state has."""
    device: torch.device
    dtype: torch.dtype
    frame: Frame
    head: int
    """How many numbers a head has."""
    has_bias: bool = False
    """Whether something is added to the scores of attention."""

    @abstractmethod
    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token, begin and end included: (tokens, width).

        Nothing here waits for the device.
        """

    def states_of(self, packs: Sequence[Pack], layers: Layers = LAST) -> list[torch.Tensor]:
        """Return what `states` does of each pack."""
        return [self.states(pack, layers) for pack in packs]

    def kernel(self, capability: tuple[int, int] | None) -> Kernel:
        """Return how to attend on a device; raises as `kernel_for` does."""
        return kernel_for(capability, self.dtype, self.head, bias=self.has_bias)

    def hidden(
        self, sequences: Sequence[Ids], layers: Layers = LAST, kernel: Kernel | None = None
    ) -> States:
        """Return the states of sequences of ids, packed at once; begin and end are added here."""
        with torch.inference_mode():
            pack = Pack.of(sequences, self.frame, self.device, kernel or self.kernel(None))
            return States(self.states(pack, layers), pack.bounds)

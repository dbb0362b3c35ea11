"""Score sequences by the probability that a model gives to each of their own tokens.

The score of a sequence is its pseudo-log-likelihood: the sum, over its own tokens, of the natural
logarithm of the probability of the token at its place; special tokens and a prefix do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from embed.engine.device import Device
from embed.models import families
from embed.models.conventions.convention import LAST, Convention
from embed.models.conventions.pooling import reduce
from embed.models.families import Tokenizer
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.pack import Pack
from embed.models.scores.masked_head import load_masked_head
from embed.models.scores.masked_lm import Scores, mask_token

LOGITS_MAX: Final = 1 << 24
"""How many logits are computed at once, 64 MiB."""


def load_scorer(
    family: str,
    folder: str,
    tokenizer: Tokenizer,
    convention: Convention,
    vocabulary: int,
    scores: Scores,
    device: Device,
) -> Scorer:
    """Load what scores sequences of the model in `folder`. Raises as `load_masked_head` does."""
    if convention.prefix:
        tokenizer = families.load_tokenizer(family, folder, convention)
    begin, end = tokenizer.edges
    mask = mask_token(family, tokenizer) if scores is Scores.MASKED else None
    head = load_masked_head(folder, device.place)
    return Scorer(head, (begin + tokenizer.prefix_tokens, end), vocabulary, mask)


class Scorer:
    """Scores the sequences of packed batches."""

    def __init__(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        edges: tuple[int, int],
        vocabulary: int,
        mask: int | None = None,
    ) -> None:
        """`head` computes logits. `edges` are how many tokens before and after are not a sequence's
        own. With `mask`, the id of that token, each token is masked in turn."""
        self._head, self._edges, self._mask = head, edges, mask
        self._tokens_max = max(1, LOGITS_MAX // vocabulary)

    def __call__(self, pack: Pack, states: torch.Tensor, encoder: PackedEncoder) -> torch.Tensor:
        """Return (sequences, 1) in float32; `states` are the last ones of every token."""
        if self._mask is not None:
            return self._masked(pack, encoder, self._mask)
        logs = self._logs(states, pack.tokens.long())
        begin, end = self._edges
        bounds = pack.bounds.long()
        starts, stops = bounds[:-1] + begin, bounds[1:] - end
        return reduce(logs[:, None], starts, stops, "mean") * (stops - starts)[:, None]

    def _logs(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the probability of each id, by the state at its place."""
        found = []
        for some, wanted in zip(
            states.split(self._tokens_max), ids.split(self._tokens_max), strict=True
        ):
            logs = functional.log_softmax(self._head(some), -1)
            found.append(logs.gather(1, wanted[:, None])[:, 0])
        return torch.cat(found)

    def _masked(self, pack: Pack, encoder: PackedEncoder, mask: int) -> torch.Tensor:
        """Run each sequence as often as it has tokens of its own, with another one masked.

        No more tokens are run at once than the batch has, so that they fit where that did.
        """
        begin, end = self._edges
        added = len(encoder.frame.begin), len(encoder.frame.end)
        scores = []
        for ids in pack.tokens.cpu().split(pack.lengths):
            inner = ids[added[0] : len(ids) - added[1]].numpy().astype(np.int64)
            places = np.arange(begin, len(ids) - end)
            found = [torch.zeros(0, device=pack.bounds.device)]
            for some in np.array_split(places, -(-len(places) * len(ids) // pack.layout.tokens)):
                if not len(some):
                    continue
                copies = np.repeat(inner[None], len(some), 0)
                copies[np.arange(len(some)), some - added[0]] = mask
                masked = Pack.of(list(copies), encoder.frame, encoder.device, pack.layout.kernel)
                masked.one_masked = True
                states = encoder.states(masked, LAST)
                at = masked.bounds[:-1].long() + torch.from_numpy(some).to(masked.bounds.device)
                wanted = ids[some].long().to(at.device)
                found.append(self._logs(states[at], wanted))
            scores.append(torch.cat(found).sum())
        return torch.stack(scores)[:, None]

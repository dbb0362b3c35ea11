"""What became of an engine's time, and how near it came to what the device can do.

Operations are those of the model's products alone, 2 for each weight and token and 4 for each pair
of tokens, layer and column, as publications count them; so the share is the model FLOPs utilisation
(MFU) of PaLM (arXiv:2204.02311, appendix B), against products measured on the same device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from embed.models.cost import ModelShape
from fsqueue import Computing


@dataclass(slots=True)
class Usage:
    """Sums over some batches."""

    tokens: int = 0
    pairs: int = 0
    """Of tokens in the same sequence, each with itself included."""
    seconds: float = 0.0
    """While there were batches to run."""
    feed_s: float = 0.0
    """Spent waiting for the next batch, or on preparing it."""
    computing_s: float = 0.0
    """In which the device computed, which may be while the next batch was prepared."""

    def add(self, other: Usage) -> None:
        """Add the sums over other batches."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def computing(self, shape: ModelShape, reach: float, peak_bytes: int) -> Computing:
        """Return it as a worker's status has it.

        `reach`: what the device does in large products, in operations per second.
        """
        done = self.tokens * shape.products_per_token + self.pairs * shape.products_per_pair
        return Computing(
            self.seconds,
            min(self.computing_s, self.seconds),
            self.feed_s,
            done / 1e12,
            reach * self.seconds / 1e12,
            peak_bytes / (1 << 30),
        )


def line(tokens: int, spent: Computing) -> str:
    """Return what became of a claim's time, for the log."""
    seconds = max(spent.seconds, 1e-9)
    mfu = spent.teraflop / spent.reach_teraflop if spent.reach_teraflop else 0.0
    return (
        f"{tokens / seconds:,.0f} tokens/s; the device computed {spent.computing_s / seconds:.0%} "
        f"of the time, at {mfu:.0%} of its speed in products; {spent.feeding_s / seconds:.0%} was "
        f"spent on preparing batches; {spent.peak_gib:.1f} GiB of memory at most"
    )

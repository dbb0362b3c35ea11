"""What is wrong with a pool's hosts, mounts and inputs from the beginning: chosen by the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from tests.sim.world import Table

BAD_MANNERS: Final = ("litters", "hangs", "deaf", "fails", "impossible")
TIMEOUT_S: Final = 100.0
"""Longer than any claim that does not hang."""


@dataclass(frozen=True, slots=True)
class Nuisances:
    """What no fault injector causes."""

    guarded: bool = False
    """Whether a guardian renews each worker's lease."""
    omits: float = 0.0
    """With which chance a listing of a busy directory misses a name."""
    tables: tuple[Table, ...] = (Table.OPEN,)
    """What the hosts' processes see of each other, host by host."""
    cloned: bool = False
    """Whether all hosts were started from one image of a running machine."""
    sick: bool = False
    """Whether every handler fails on the first host."""
    purges: int = 0
    """How many waiting claims' files are removed by something else."""

    @classmethod
    def random(cls, rng: Random) -> Nuisances:
        """Choose some."""
        return cls(
            guarded=rng.random() < 0.4,
            omits=rng.choice((0.0, 0.0, 0.0, 0.1)),
            tables=tuple(rng.choices(tuple(Table), (4, 1, 1), k=3)),
            cloned=rng.random() < 0.2,
            sick=rng.random() < 0.1,
            purges=rng.choice((0, 0, 0, 0, 0, 0, 0, 1)),
        )


def bad_inputs(rng: Random) -> tuple[str, ...]:
    """Choose inputs that are no good, often none."""
    stems = "wxyz"[: rng.choice((0, 0, 1, 1, 2, 4))]
    return tuple(f"{stem}.{rng.choice((1, 20, 160))}.{rng.choice(BAD_MANNERS)}" for stem in stems)

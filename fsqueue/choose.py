"""Choose the next claim: pure functions over names, weights and rates. No file is touched here.

What the rules are worth was simulated over 900 instances (docs/LOG.md): largest claim first is
worth 7 %, the victim rule 1 %, stealing the head rather than the tail 1-3 %, and leaving alone what
a faster worker would finish sooner 3-9 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fsqueue.names import ClaimName


@dataclass(frozen=True, slots=True)
class Taste:
    """What one worker would rather do: loaded kinds first, what failed here last."""

    loaded: frozenset[str] = frozenset()
    unable: frozenset[str] = frozenset()
    failed_here: frozenset[str] = frozenset()


@dataclass(slots=True)
class View:
    """One spool as a thief sees it.

    `waiting` is in the thief's order, best last; `cost` is the sum of its costs. `running` is what
    the spool's own workers have left of the claims they run, and `speed` what they do together, in
    the thief's units; 0.0 if the spool has no worker.
    """

    waiting: list[ClaimName]
    cost: int
    running: float = 0.0
    speed: float = 0.0

    @property
    def remaining(self) -> float:
        """How long its own workers still need for all of it; infinite if it has none."""
        if not self.cost + self.running:
            return 0.0
        return (self.cost + self.running) / self.speed if self.speed > 0 else math.inf

    def pop(self) -> ClaimName:
        """Remove and return the best claim."""
        name = self.waiting.pop()
        self.cost -= name.cost
        return name


def in_order(names: Iterable[ClaimName], taste: Taste) -> list[ClaimName]:
    """Return what this worker can do, best last (so that `pop` takes it).

    What failed here comes last of all: another worker may be luckier. Then loaded kinds before
    those that would have to be loaded, then the largest first.
    """
    able = (name for name in names if name.kind not in taste.unable)
    return sorted(
        able,
        key=lambda n: (n.id not in taste.failed_here, n.kind in taste.loaded, n.cost, n.id),
    )


def victims(views: Mapping[str, View]) -> list[str]:
    """Return the spools with something to steal, the one with the most remaining time first."""
    able = [spool for spool, view in views.items() if view.waiting]
    return sorted(able, key=lambda spool: (-views[spool].remaining, spool))


def worth_stealing(view: View, name: ClaimName, speed: float) -> bool:
    """Say whether a thief of this speed would end `name` before its own workers are through.

    Otherwise it would only make the end later: a slow card must not take the last claim of a fast
    one that is about to be free.
    """
    return name.cost <= view.remaining * speed


def speeds(
    weights: Mapping[str, float], rates: Mapping[str, Mapping[str, float]], kind: str
) -> dict[str, float]:
    """Return each worker's speed for a kind: measured where it has finished some, else by weight.

    A weight has no unit and a rate is cost per second; the workers that have both tell how many
    cost per second one unit of weight is worth.
    """
    measured = {w: rates[w][kind] for w in weights if rates.get(w, {}).get(kind, 0.0) > 0}
    if not measured:
        return dict(weights)
    unit = statistics.median(rate / weights[worker] for worker, rate in measured.items())
    return {worker: measured.get(worker, weight * unit) for worker, weight in weights.items()}


@dataclass(slots=True)
class Patience:
    """How often a claim was left to a faster worker, so that it is not left for ever.

    A faster worker may hang while its lease lives; after `rounds` idle rounds the slow one takes
    the claim after all.
    """

    rounds: int = 20
    _left: dict[str, int] = field(default_factory=dict)

    def left_alone(self, refused: Collection[str]) -> set[str]:
        """Count one more round for these ids, and return those that were left often enough."""
        self._left = {id: self._left.get(id, 0) + 1 for id in refused}
        return {id for id, count in self._left.items() if count > self.rounds}

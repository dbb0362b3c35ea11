"""Read a pool's plans, claims and outputs, for example to merge its results.

Plans come in the order in which they were made, their inputs and claims in the order in which they
were planned. Nothing here writes. While workers run, the state of a claim may be out of date as
soon as it is read; only `done` is final (I6: its output is whole and stays).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fsqueue.errors import PoolError
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName, is_given_up
from fsqueue.pool.overwriting import (
    Earlier,
    planned_inputs,
    refuse_inside,
    refuse_overwriting,
)
from fsqueue.pool.settings import open_pool, spool_names
from fsqueue.storage.untrusted import read_json


@dataclass(frozen=True, slots=True)
class PlanView:
    """One plan: its handler, options and inputs."""

    number: int
    handler: str
    options: Mapping[str, Any]
    inputs: tuple[str, ...]
    """Absolute paths, in the order given."""
    suffix: str | None


@dataclass(frozen=True, slots=True)
class ClaimView:
    """One planned claim: its state, and where its output is once it is done."""

    id: str
    kind: str
    state: str
    """waiting, running, done or failed."""
    path: str
    """Its file; empty if it was moving while the pool was listed."""
    output: str
    """Empty for handlers without outputs."""

    @property
    def done(self) -> bool:
        return self.state == State.DONE

    @property
    def failed(self) -> bool:
        return self.state == State.FAILED

    @property
    def given_up(self) -> bool:
        """Whether it failed and was superseded or forgotten, so that nothing waits for it."""
        return self.failed and is_given_up(self.path)


class PoolReader:
    """A pool, listed once. Raises UsageError if it is not a pool, PoolError if it is damaged."""

    def __init__(self, root: str) -> None:
        self._pool = open_pool(root)
        self._places: dict[str, tuple[State, str]] = {}
        for spool in spool_names(self._pool):
            for name in claims.waiting(self._pool, spool):
                self._places[name.id] = State.WAITING, self._pool.waiting(spool, name)
        # In the order in which claims move, so that a moving claim is seen where it arrives.
        for state in (State.RUNNING, State.FAILED, State.DONE):
            for name in claims.owned(self._pool, state):
                self._places[name.id] = state, self._pool.owned(state, name)

    @property
    def root(self) -> str:
        return self._pool.root

    def refuse_overwriting(
        self, target: str, recognise: Callable[[str], Earlier], *, force: bool = False
    ) -> None:
        """Raise UsageError if writing `target` would replace an input, or what is not ours.

        See `fsqueue.pool.overwriting`, which has the rule.
        """
        refuse_inside(self._pool, target)
        inputs = planned_inputs(self._pool)
        refuse_overwriting(target, inputs=inputs, recognise=recognise, force=force)

    def plans(self, handler: str | None = None) -> list[PlanView]:
        """Return the plans of one handler, or of all, oldest first."""
        found = []
        for number in plans.numbers(self._pool):
            plan = plans.read_plan(self._pool, number)
            if handler in (None, plan.handler):
                inputs = tuple(plans.read_inputs(self._pool, number))
                found.append(PlanView(number, plan.handler, plan.options, inputs, plan.suffix))
        return found

    def claims(self, plan: PlanView) -> Iterator[ClaimView]:
        """Yield the claims of a plan, in planned order."""
        for name, _spool in plans.read_claims(self._pool, plan.number):
            yield self._view(name, plan.suffix)

    def payload(self, claim: ClaimView) -> dict[str, Any]:
        """Return what a claim's handler is to do.

        Raises FileNotFoundError if the claim moved since the pool was listed; a done one stays.
        """
        patience_s = 2.0 if claim.done else 0.0
        facts = read_json(claim.path, patience_s=patience_s)
        payload = facts.get("payload")
        if facts.get("id") != claim.id or not isinstance(payload, dict):
            raise PoolError(
                f"{claim.path} does not hold the claim that its name says; it was edited or "
                f"damaged. Restore it, or plan its inputs into a new pool."
            )
        return payload

    def _view(self, name: ClaimName, suffix: str | None) -> ClaimView:
        state, path = self._places.get(name.id, (State.WAITING, ""))
        output = self._pool.output(name.id, suffix) if suffix is not None else ""
        return ClaimView(name.id, name.kind, state.name.lower(), path, output)

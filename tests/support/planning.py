"""Make pools for tests through the planner itself, without a process per plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsqueue.handler import Handler, load_handler
from fsqueue.pool.claims import owned, waiting
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, Spool, create_pool, spool_names
from fsqueue.scheduling.planner import PlanRequest, PlanResult, plan_into

FOREVER = ("sh", "-c", "exec sleep 1000", "sh", "{input}")
"""A program that ends only by a signal."""


def make_inputs(directory: Path, count: int) -> list[Path]:
    """Write `count` small files that differ in size, so that their claims have an order."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"in{index:03d}" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_text("x" * (count - index))
    return paths


def plan(
    root: Path,
    handler: Handler,
    inputs: Sequence[Path | str],
    options: dict[str, Any],
    *,
    spools: Sequence[str] = ("cpu0",),
    model: str = "cpu",
    lease_s: float = 30.0,
    attempts: int = 3,
    timeout: float = 0.0,
    priority: int = 0,
) -> tuple[PoolDirectory, PlanResult]:
    """Plan `inputs` into the pool at `root`, which is made if need be."""
    pool = create_pool(str(root), lease_s=lease_s, attempts_max=attempts)
    asked = [Spool(name, model, 1.0) for name in spools]
    paths = [str(path) for path in inputs]
    prepared = handler.prepare(options)
    request = PlanRequest(handler, prepared, paths, asked, timeout_s=timeout, priority=priority)
    outcome = plan_into(pool, request)
    return pool, outcome


def plan_command(
    root: Path,
    inputs: Sequence[Path | str],
    argv: Sequence[str],
    *,
    grace: float = 10.0,
    **how: Any,
) -> PoolDirectory:
    """Plan a program over `inputs`; `how` is handed on to `plan`."""
    options = {"argv": list(argv), "grace": grace}
    pool, outcome = plan(root, load_handler("command"), inputs, options, **how)
    assert not outcome.bad, outcome.bad
    return pool


def ids(pool: PoolDirectory, state: State) -> list[str]:
    """Return the ids of the claims in a state, sorted; one that is there twice comes twice."""
    return sorted(name.id for name in names_in(pool, state))


def names_in(pool: PoolDirectory, state: State) -> list[ClaimName]:
    """Return the names of the claims in a state."""
    if state is State.WAITING:
        return [name for spool in spool_names(pool) for name in waiting(pool, spool)]
    return list(owned(pool, state))


def counts(pool: PoolDirectory) -> dict[str, int]:
    """Return how many claims are in each state, those without any left out."""
    found = {state.name.lower(): len(ids(pool, state)) for state in State}
    return {state: count for state, count in found.items() if count}

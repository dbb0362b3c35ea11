"""Find out whether a pool's inputs are where its plans say, on this host."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from typing import Final

from fsqueue.pool import plans
from fsqueue.pool.settings import PoolDirectory

LOOKED_AT: Final = 3


@dataclass(frozen=True, slots=True)
class Unseen:
    """An input of a plan that is not here, and the nearest directory above it that is."""

    plan: int
    path: str
    nearest: str


def unseen_inputs(pool: PoolDirectory) -> list[Unseen]:
    """Return an input of each plan that is not here, of the first few that each plan names."""
    found = []
    for number in plans.numbers(pool):
        paths = islice(plans.read_inputs(pool, number), LOOKED_AT)
        missing = next((path for path in paths if not os.path.lexists(path)), None)
        if missing is not None:
            found.append(Unseen(number, missing, _nearest(missing)))
    return found


def _nearest(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path

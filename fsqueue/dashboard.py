"""Draw a pool in a terminal: the only door to rich.

`render` is a pure function of a snapshot, a view and a size; `show` looks and draws until told to
stop. Text from the pool is shown, never obeyed: it arrives printable (`status.printable`), and
nothing here reads it as markup.

The table drops columns by importance until it fits the width, and rows until it fits the height:
what is in trouble and what works stays longest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fsqueue import figures
from fsqueue.keys import Keys
from fsqueue.pool import Pool
from fsqueue.snapshot import Reader, Snapshot, SpoolRow
from fsqueue.roster import Use, WorkerRow

GREEN_MIN: Final = 80.0
YELLOW_MIN: Final = 50.0


@dataclass(frozen=True, slots=True)
class View:
    """What the person who watches wants to see."""

    events: int = 8
    memory: bool = True
    by_worker: bool = False
    failed: bool = True
    sort: str = "name"
    ascii: bool = False
    keys: bool = False
    help: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `rank` 0 is never dropped, the highest rank is dropped first."""

    title: str
    rank: int
    right: bool
    cell: Callable[[Row], Text]


def colour(percentage: float | None) -> str:
    """Return the style for a utilisation: green from 80 %, yellow from 50 %, red below."""
    if percentage is None:
        return "dim"
    if percentage >= GREEN_MIN:
        return "green"
    return "yellow" if percentage >= YELLOW_MIN else "red"

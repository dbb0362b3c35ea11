"""Keep a frame up to date on a terminal or in a notebook."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

from rich.console import Console
from rich.live import Live

from fsqueue.dashboard.board import SORTS, View
from fsqueue.dashboard.draw import render
from fsqueue.dashboard.keys import Keys
from fsqueue.monitor.log_lines import follow, pause_s
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.pool.settings import PoolDirectory

POLL_S: Final = 0.1


def show(
    pool: PoolDirectory,
    *,
    until: Callable[[], bool] | None = None,
    interval_s: float = 2.0,
    view: View | None = None,
    reader: Reader | None = None,
    keys: bool = False,
) -> Snapshot:
    """Draw live until `until()` is true (None: until all is done, or q is typed).

    The last frame stays visible; it shows the pool after `until()` became true. Where a frame
    cannot be replaced by the next (a pipe, a file), lines are printed instead.
    """
    reader = reader or Reader(pool)
    console = Console(highlight=False)
    if not _can_update(console):
        return follow(pool, until=until, interval_s=interval_s, echo=console.out, reader=reader)
    with (
        Keys() if keys else nullcontext() as typed,
        Live(console=console, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        screen = _Screen(live, view or View(), typed)
        while True:
            over = until is not None and until()
            snapshot = reader.snapshot()
            screen.draw(snapshot)
            if over or (until is None and snapshot.finished):
                return snapshot
            screen.rest(pause_s(interval_s, snapshot), until)
            if screen.quit:
                return snapshot


def in_notebook() -> bool:
    """Return whether stdout is a notebook that can show a live table."""
    console = Console(highlight=False)
    return console.is_jupyter and _can_update(console)


def _can_update(console: Console) -> bool:
    """Return whether a frame can be replaced by the next one."""
    if console.is_jupyter:  # rich needs ipywidgets there
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


class _Screen:
    """The terminal, what is on it, and the keys typed."""

    def __init__(self, live: Live, view: View, keys: Keys | None) -> None:
        self._live = live
        self._view = view
        self._keys = keys
        self._size = live.console.size
        self.quit = False

    def draw(self, snapshot: Snapshot) -> None:
        """Put a snapshot on the screen."""
        console = self._live.console
        if console.size != self._size:
            # The terminal may have wrapped lines, so the height of the last frame is unknown.
            console.clear()
            self._size = console.size
        width, height = self._size
        frame = render(snapshot, self._view, width, height, ascii=console.options.ascii_only)
        self._live.update(frame, refresh=True)
        self._snapshot = snapshot

    def rest(self, seconds: float, until: Callable[[], bool] | None) -> None:
        """Wait for the next refresh; act on keys, and follow the terminal's size."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self.quit:
            key = self._key(min(left, POLL_S))
            self.quit = key in ("q", "Q", "\x04")
            before, self._view = self._view, view_after(self._view, key)
            if self._view != before or self._live.console.size != self._size:
                self.draw(self._snapshot)
            if until is not None and until():
                return

    def _key(self, seconds: float) -> str:
        if self._keys is not None:
            return self._keys.wait(seconds)
        time.sleep(seconds)
        return ""


def view_after(view: View, key: str) -> View:
    """Return the view after a key was typed."""
    if key == "s":
        return replace(view, sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)])
    if key == "w":
        return replace(view, by_worker=not view.by_worker)
    if key == "f":
        return replace(view, failed=not view.failed)
    if key == "e":
        return replace(view, steals=not view.steals)
    if key == "t":
        return replace(view, rates=not view.rates)
    if key == "m":
        return replace(view, memory=not view.memory)
    return replace(view, help=not view.help) if key == "?" else view


def print_once(snapshot: Snapshot, view: View) -> None:
    """Print one whole frame: on a terminal in its width, elsewhere in COLUMNS or 120."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=120)
    width = console.size.width
    console.print(render(snapshot, view, width, 10_000, ascii=console.options.ascii_only))

"""One line that shows how far a pool is: in a notebook, on a terminal, or now and then in a log."""

from __future__ import annotations

import html
import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

from fsqueue.monitor.log_lines import counted
from fsqueue.monitor.snapshot import Snapshot

LINE_EVERY_S: Final = 30.0
WIDTH: Final = 30


class ProgressBar:
    """Shows the latest snapshot it was given; `close` leaves the last one standing."""

    def __init__(
        self, file: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._live = self._file.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._notebook = "ipykernel" in sys.modules
        self._handle: Any = None
        self._due = -LINE_EVERY_S
        self._last = ""

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        if self._notebook:
            self._show_in_notebook(snapshot)
        elif self._live:
            self._last = bar(snapshot, ascii=not _can_encode(self._file))
            width = max(20, _columns(self._file) - 1)
            print(f"\r\x1b[K{self._last[:width]}", end="", file=self._file, flush=True)
        elif self._clock() - self._due >= LINE_EVERY_S or snapshot.finished:
            self._due = self._clock()
            print(counted(snapshot), file=self._file, flush=True)

    def close(self) -> None:
        """End the line."""
        if self._live and self._last and not self._notebook:
            print(file=self._file, flush=True)

    def _show_in_notebook(self, snapshot: Snapshot) -> None:
        shown = {"text/plain": bar(snapshot), "text/html": as_html(snapshot)}
        if self._handle is None:
            display = importlib.import_module("IPython.display").display
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def bar(snapshot: Snapshot, *, ascii: bool = False) -> str:
    """Return a snapshot as one line: a bar by cost, and what is counted."""
    full, empty = ("#", "-") if ascii else ("█", "░")
    filled = int(WIDTH * snapshot.progress)
    part = f"{100 * snapshot.progress:5.1f}%"
    return f"{part} {full * filled}{empty * (WIDTH - filled)} {counted(snapshot)}"


def as_html(snapshot: Snapshot) -> str:
    """Return a snapshot as HTML for a notebook."""
    value = f"{snapshot.progress:.4f}"
    return (
        f'<div style="font-family: monospace"><progress style="width: 20em; vertical-align: middle"'
        f' max="1" value="{value}"></progress> {100 * snapshot.progress:.1f}% '
        f"{html.escape(counted(snapshot))}</div>"
    )


def _can_encode(file: TextIO) -> bool:
    return (getattr(file, "encoding", None) or "ascii").lower().replace("-", "") == "utf8"


def _columns(file: TextIO) -> int:
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return 80

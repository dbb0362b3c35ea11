"""Keep a log of how busy and how fast each GPU was: one CSV line per GPU and look.

Several may watch one pool from several hosts, and lines appended from two hosts tear each other. So
only whoever holds the lock writes; the others leave it alone without a word.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from fsqueue import atomic
from fsqueue.crews import SpoolRow
from fsqueue.locks import try_lock

HEADER: Final = "timestamp,gpu_id,sequences_per_sec,compute_percent,memory_percent"
BYTES_MAX: Final = 64 << 20


def metric_lines(rows: Sequence[SpoolRow], t: float) -> list[str]:
    """Return a line per spool in the order of HEADER; what is unknown is empty."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
    lines = []
    for row in rows:
        if row.name:
            values = (row.items_per_s, row.use.compute_percent, row.use.memory_percent)
            texts = [
                "" if value is None else f"{value:.{2 if value < 1000 else 0}f}" for value in values
            ]
            lines.append(",".join([at, row.name, *texts]))
    return lines


class MetricsLog:
    """The metrics log at `path`, while we hold its lock."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held = ExitStack()
        self._file: atomic.Appender | None = None
        if self._held.enter_context(try_lock(f"{path}.lock")):
            self._open()

    def _open(self) -> None:
        fresh = not os.path.exists(self._path) or os.path.getsize(self._path) == 0
        self._file = atomic.Appender(self._path)
        if fresh:
            self._file.line(HEADER.encode())

    @property
    def writing(self) -> bool:
        """Say whether it is we who write."""
        return self._file is not None

    def write(self, lines: Sequence[str]) -> None:
        """Append lines, if it is we who write; start a new file once this one is large."""
        if self._file is None or not lines:
            return
        self._file.line("\n".join(lines).encode())
        if os.path.getsize(self._path) > BYTES_MAX:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._open()

    def close(self) -> None:
        """Stop writing, and let another watcher write."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._held.close()

"""A log of how busy and how fast each GPU was: one CSV line per GPU and look.

Several processes may watch one pool from several hosts, and lines appended from two hosts tear each
other. So only the holder of the lock writes; the others write nothing, and try the lock again at
each look: when the writer ends, another one goes on.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.storage.locks import try_lock

log = logging.getLogger(__name__)

HEADER: Final = "timestamp,gpu_id,sequences_per_sec,compute_percent,memory_percent"
BYTES_MAX: Final = 64 << 20


def metrics_path(pool: PoolDirectory) -> str:
    """Return where a pool's metrics log is."""
    return f"{pool.root}/gpu_metrics.log"


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
    """The metrics log at `path`; written only while its lock is held here. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held = ExitStack()
        self._file: atomic.Appender | None = None
        self._try()

    def _try(self) -> None:
        """Take the lock if it is free, and open the log."""
        with ExitStack() as held:
            if held.enter_context(try_lock(f"{self._path}.lock")):
                self._file = _opened(self._path)
                self._held = held.pop_all()

    @property
    def writing(self) -> bool:
        """Whether this process is the writer."""
        return self._file is not None

    def write(self, lines: Sequence[str]) -> None:
        """Append lines if this process is the writer; start a new file once this one is large."""
        if self._file is None:
            self._try()
        if self._file is None or not lines:
            return
        if self._size() > BYTES_MAX:
            os.replace(self._path, f"{self._path}.1")
        if self._size() < 0:
            self._file.close()
            self._file = None
            self._file = _opened(self._path)
        self._file.line("\n".join(lines).encode())

    def keep(self, snapshot: Snapshot) -> None:
        """Append a line per GPU. A full disk costs those lines and a warning."""
        try:
            self.write(metric_lines(snapshot.spools, snapshot.taken_at))
        except OSError as error:
            log.warning("metrics could not be appended to %s: %s", self._path, error)

    def _size(self) -> int:
        """Return the size of the log; -1 if it was set aside, by this process or by a person."""
        try:
            return os.path.getsize(self._path)
        except FileNotFoundError:
            return -1  # RACE: moved away between two lines; a new log is started

    def close(self) -> None:
        """Stop writing, so that another process can."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._held.close()


def _opened(path: str) -> atomic.Appender:
    """Open the log. A line that a killed writer left incomplete is ended."""
    file = atomic.Appender(path, in_turn=True)
    size = os.path.getsize(path)
    if size <= len(HEADER):
        file.line(HEADER[size:].encode())  # or the part that a full disk left out
    elif not _ends_a_line(path):
        file.line(b"")
    return file


def _ends_a_line(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"

"""Logs of how busy and how fast each GPU was, and where the time went: a CSV line per GPU and look.

`gpu_metrics.log` has five columns, which other programs rely on. Where handlers report what became
of their time, `time_use.log` beside it has a line for each line there.

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
from dataclasses import astuple
from typing import Final

from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.monitor.time_use import TimeUse
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from fsqueue.storage.locks import try_lock

log = logging.getLogger(__name__)

HEADER: Final = "timestamp,gpu_id,sequences_per_sec,compute_percent,memory_percent"
TIME_USE_HEADER: Final = (
    "timestamp,gpu_id,tokens_per_sec,computing_percent,feeding_percent,mfu_percent,peak_memory_gib"
)
"""The shares are of all the time since a worker began, see `monitor.time_use`."""
BYTES_MAX: Final = 64 << 20


def metrics_path(pool: PoolDirectory) -> str:
    """Return where a pool's metrics log is."""
    return f"{pool.root}/gpu_metrics.log"


def time_use_path(pool: PoolDirectory) -> str:
    """Return where the log of what became of the time is."""
    return f"{pool.root}/time_use.log"


def metric_lines(rows: Sequence[SpoolRow], t: float) -> list[str]:
    """Return a line per spool in the order of HEADER; what is unknown is empty."""
    return [
        _line(t, row.name, (row.items_per_s, row.use.compute_percent, row.use.memory_percent))
        for row in rows
        if row.name
    ]


def time_use_lines(rows: Sequence[SpoolRow], t: float) -> list[str]:
    """Return a line per spool in the order of TIME_USE_HEADER; none if no worker reports any."""
    if all(row.time_use == TimeUse() for row in rows):
        return []
    return [
        _line(t, row.name, (row.rates.get("tokens"), *astuple(row.time_use)))
        for row in rows
        if row.name
    ]


def _line(t: float, name: str, values: Sequence[float | None]) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
    texts = ["" if value is None else f"{value:.{2 if value < 1000 else 0}f}" for value in values]
    return ",".join([at, name, *texts])


class MetricsLog:
    """The metrics log at `path`; written only while its lock is held here. Raises OSError.

    At `time_use`, if it is given, is the log of what became of the time; it has the same writer.
    """

    def __init__(self, path: str, time_use: str = "") -> None:
        self._path = path
        self._held = ExitStack()
        self._log = _Csv(path, HEADER)
        self._time_use = _Csv(time_use, TIME_USE_HEADER) if time_use else None
        self._try()

    def _try(self) -> None:
        """Take the lock if it is free, and open the log."""
        with ExitStack() as held:
            if held.enter_context(try_lock(f"{self._path}.lock")):
                self._log.open()
                self._held = held.pop_all()

    @property
    def writing(self) -> bool:
        """Whether this process is the writer."""
        return self._log.is_open

    def write(self, lines: Sequence[str], time_use: Sequence[str] = ()) -> None:
        """Append lines if this process is the writer; start a new file once one is large."""
        if not self.writing:
            self._try()
        if not self.writing:
            return
        self._log.append(lines)
        if self._time_use is not None:
            self._time_use.append(time_use)

    def keep(self, snapshot: Snapshot) -> None:
        """Append a line per GPU. A full disk costs those lines and a warning."""
        rows, t = snapshot.spools, snapshot.taken_at
        try:
            self.write(metric_lines(rows, t), time_use_lines(rows, t))
        except OSError as error:
            log.warning("metrics could not be appended to %s: %s", self._path, error)

    def close(self) -> None:
        """Stop writing, so that another process can."""
        self._log.close()
        if self._time_use is not None:
            self._time_use.close()
        self._held.close()


class _Csv:
    """A file of lines below a header, made when it has the first, by the only process that may."""

    def __init__(self, path: str, header: str) -> None:
        self._path, self._header = path, header
        self._file: atomic.Appender | None = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def open(self) -> None:
        """Open the file. A line that a killed writer left incomplete is ended."""
        file = atomic.Appender(self._path, in_turn=True)
        size = os.path.getsize(self._path)
        if size <= len(self._header):
            file.line(self._header[size:].encode())  # or the part that a full disk left out
        elif not _ends_a_line(self._path):
            file.line(b"")
        self._file = file

    def append(self, lines: Sequence[str]) -> None:
        """Append lines, in a new file once this one is large or was moved away."""
        if not lines:
            return
        if self._size() > BYTES_MAX:
            os.replace(self._path, f"{self._path}.1")
        if self._size() < 0:
            self.close()
        if self._file is None:
            self.open()
        assert self._file is not None
        self._file.line("\n".join(lines).encode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _size(self) -> int:
        """Return the file's size; -1 if it was set aside, by this process or by a person."""
        try:
            return os.path.getsize(self._path)
        except FileNotFoundError:
            return -1  # RACE: moved away between two lines; a new file is started


def _ends_a_line(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"

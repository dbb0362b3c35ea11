"""Log to stderr without ever waiting for whatever reads it.

R50  No log line holds up the work: a terminal that was stopped with Ctrl-S, a pager, or a stalled
     ssh connection costs log lines, and nothing else. How many is reported once it goes on.

A line is written at once where that cannot block: to a file, or to a pipe with room for it. What
cannot be written at once is kept, up to a limit, and written by a thread.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
from collections import deque
from typing import Final

KEPT_MAX: Final = 1000
"""How many lines are kept for a reader that does not read."""
LINE_MAX: Final = select.PIPE_BUF
"""A pipe that poll calls writable has room for so many bytes."""
FLUSH_S: Final = 1.0
"""How long the end of the process waits for lines that are still to be written."""


class StderrLog(logging.Handler):
    """Write records to a descriptor, a line each."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._kept: deque[bytes] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it to be written; never wait."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if not self._kept and len(line) <= LINE_MAX and self._never_blocks():
                self._write(line)
                return
            if len(self._kept) >= KEPT_MAX:
                self._dropped += 1
                return
            self._kept.append(line)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._drain, name="log", daemon=True)
                self._thread.start()

    def _never_blocks(self) -> bool:
        try:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISREG(mode):
                return True
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            return stat.S_ISFIFO(mode) and any(at & select.POLLOUT for _, at in poll.poll(0))
        except OSError:
            return True  # closed: the write fails at once

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError:
            pass  # a closed terminal, a full disk: a log line is not worth more

    def _drain(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._kept)
                line = self._kept[0]
            self._write(line)
            with self._changed:
                self._kept.popleft()
                if not self._kept and self._dropped:
                    text = (
                        f"{self._dropped:,} lines were dropped: nothing read this log for a while"
                    )
                    self._kept.append(text.encode() + b"\n")
                    self._dropped = 0
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything kept was written, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._kept, FLUSH_S)

"""Read single keys from a terminal, if there is one; elsewhere only wait.

The terminal is always restored.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Final

ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|O.?)?")
"""What arrow and function keys send: ignored, because letters are in it."""


class Keys:
    """Keys as they are typed, inside a `with` block."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._typed: deque[str] = deque()
        self._before: Any = None

    def __enter__(self) -> Keys:
        import termios
        import tty

        try:
            fd = sys.stdin.fileno()
            if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp():  # else it would stop us: SIGTTOU
                self._before = termios.tcgetattr(fd)
                tty.setcbreak(fd)
                self._fd = fd
        except (OSError, ValueError, termios.error):
            self._fd = None  # no stdin or no terminal, so no keys
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            self._fd = None

    def wait(self, seconds: float) -> str:
        """Return the next key, or "" if none was typed within `seconds`."""
        if self._typed:
            return self._typed.popleft()
        if self._fd is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return ""
        data = os.read(self._fd, 64)
        if not data:  # the terminal is gone
            self._fd = None
            return "q"
        self._typed.extend(ESCAPE.sub("", data.decode(errors="replace")))
        return self._typed.popleft() if self._typed else ""

"""Make sure that descriptors 0, 1 and 2 are open, before anything else is opened.

Rules:

R26 No file of a pool ever becomes descriptor 0, 1 or 2. A process that was started with one of them
    closed would otherwise get it for the next file it opens, and what is meant for stderr would be
    written into a claim's output.
"""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """Open each of the three that is closed on /dev/null. Call it before anything is opened."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115

"""Which signals ask a worker to leave. A module of its own, so that knowing them imports nothing.

What a worker does about them is in `shutdown`.
"""

from __future__ import annotations

import signal
from typing import Final

SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""What asks a worker to leave."""
TIME_SIGNALS: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""With these, batch systems warn that an allocation ends."""

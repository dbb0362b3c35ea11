"""Put processes into a control group with a limit of memory or of processes; it takes root."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
FILES = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max", "pids.max"),
}
"""The file that holds a controller's limit, in version 1 and in version 2."""


@dataclass(frozen=True, slots=True)
class Group:
    """A control group of our own."""

    path: Path

    def enter(self) -> None:
        """Put the calling process into it; for between fork and exec."""
        self.take(os.getpid())

    def take(self, pid: int) -> None:
        """Put a process into it, and whatever that starts from now on."""
        (self.path / "cgroup.procs").write_text(str(pid))


@contextmanager
def control_group(controller: str, limit: int) -> Iterator[Group]:
    """Make a group with this limit; it must be empty at the end. OSError if there can be none."""
    one = (ROOT / controller).is_dir()
    path = (ROOT / controller if one else ROOT) / f"fsqueue-test-{secrets.token_hex(4)}"
    path.mkdir()
    try:
        (path / FILES[controller][0 if one else 1]).write_text(str(limit))
        yield Group(path)
    finally:
        path.rmdir()

"""Give each run of a program a temporary directory of its own, on this host, and remove it.

Rules:

R25 A program's temporary files are in a directory that it is given as TMPDIR (and TMP and TEMP).
    It is empty at first, and what is in it goes with the run, whatever its ending. What cannot be
    removed is logged, and decides nothing.

A directory that a run left empty serves the next one: most programs need none, and making and
removing one can cost as much as the program. The name has the worker's id in it, so that what a
killed worker left can be found and removed.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

_PREFIX: Final = "fsqueue-"
_TRUSTED_S: Final = 60.0
"""How long a directory that was seen empty is believed to be there; some hosts tidy up /tmp."""


class TemporaryDirectory:
    """An empty directory for one run after the other, which only this user may enter."""

    def __init__(self) -> None:
        self._path = ""
        self._seen = -_TRUSTED_S
        self._finalizer: Callable[[], object] | None = None
        """Removes it, once: also if nothing calls `remove`."""

    def take(self, worker: str) -> str:
        """Return its path; make it if need be. Raises OSError."""
        recently = time.monotonic() - self._seen < _TRUSTED_S
        if not (self._path and recently or self._is_as_new()):
            self.remove()
            self._path = f"{tempfile.gettempdir()}/{_PREFIX}{worker}-{os.urandom(4).hex()}"
            os.mkdir(self._path, 0o700)
            self._finalizer = weakref.finalize(self, remove, self._path)
        return self._path

    def give_back(self, *, reusable: bool = True) -> None:
        """End a run's use of it; not `reusable`: something may still write into it."""
        if self._path and not (reusable and self._is_as_new()):
            self.remove()
        self._seen = time.monotonic()

    def remove(self) -> None:
        """Remove it, with what it holds."""
        if self._finalizer is not None:
            self._finalizer()
        self._path = ""

    def _is_as_new(self) -> bool:
        try:
            mode = os.lstat(self._path).st_mode
            return mode == stat.S_IFDIR | 0o700 and not os.listdir(self._path)
        except OSError:
            return False  # nothing was made, or something removed it


def remove(path: str) -> None:
    """Remove a file, or a directory with all it holds, as far as possible; never raises OSError."""
    try:
        os.rmdir(path)  # nearly always it is an empty directory
    except OSError:
        try:
            _remove(path)
        except OSError as error:
            log.debug("%s is left behind: %s", path, error)


def _remove(path: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return os.unlink(path)
    os.chmod(path, 0o700)  # a program may have made it read-only, as Go does with its module cache
    for name in os.listdir(path):
        try:
            _remove(f"{path}/{name}")
        except OSError as error:
            log.debug("%s is left behind: %s", f"{path}/{name}", error)
    os.rmdir(path)


def remove_all_of(worker: str) -> None:
    """Remove the temporary directories of a worker that is dead."""
    parent = tempfile.gettempdir()
    try:
        names = os.listdir(parent)
    except OSError as error:
        log.debug("%s cannot be listed: %s", parent, error)
        return
    for name in names:
        if name.startswith(f"{_PREFIX}{worker}-"):
            remove(f"{parent}/{name}")

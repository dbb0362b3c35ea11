"""Write a file or directory whole: under a private name beside it first, then moved into place.

For files that a person asks for by name: merged tables, prepared sequences. Such a file replaces
that of an earlier run, as a compiler's output does; a concurrent reader has the old one or the new.
What a pool publishes is never replaced, and is not written by this module.

A killed process leaves its private file behind, which may be as large as the result. The name says
which process of which host wrote it, so the next process of that host that writes into the same
directory removes it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a private path to write to; when the block ends, move it to `path`, synced.

    If the block raises, the private file is removed and `path` is unchanged.
    """
    final = Path(path)
    private = private_path(final)
    try:
        yield private
        _sync(private)
        os.replace(private, final)
        _sync(final.parent)
    except BaseException:
        private.unlink(missing_ok=True)
        raise


@contextmanager
def private_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a private directory beside `path`, and remove it when the block ends.

    The block may move it away.
    """
    private = private_path(Path(path))
    private.mkdir()
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def private_path(final: Path) -> Path:
    """Return an unused private name in the directory of `final`."""
    _remove_leftovers(final.parent.absolute())
    name = f".{final.name[:120]}.{_host_id()}-{os.getpid()}-{secrets.token_hex(4)}"
    return final.with_name(name)


_PRIVATE: Final = r"\..+\.{host}-(\d+)-[0-9a-f]{{8}}"


@functools.cache
def _host_id() -> str:
    """Return what distinguishes the processes of this host, or container, from those of others."""
    facts = [socket.gethostname()]
    for path, read in (("/etc/machine-id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            facts.append(str(read(Path(path))))
        except OSError:
            continue  # not on every system
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


@functools.cache
def _remove_leftovers(directory: Path) -> None:
    """Remove private files of dead processes of this host; once per process and directory."""
    pattern = re.compile(_PRIVATE.format(host=_host_id()))
    try:
        found = [
            (name, match) for name in os.listdir(directory) if (match := pattern.fullmatch(name))
        ]
    except OSError:
        return  # writing there will report the error
    for path in (directory / name for name, match in found if _is_gone(int(match[1]))):
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            # RACE: another process may be removing it, too; or it belongs to another user.
            log.debug("%s could not be removed: %s", path, error)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it belongs to another user
    return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

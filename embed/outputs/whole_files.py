"""Let a file appear whole: write it under a private name beside its place, then move it there.

For what a person asks for by name: merged tables, prepared sequences. Such a file replaces the one
of an earlier run, as a compiler's output does; whoever reads meanwhile has the old one or the new.
What a pool publishes is never replaced, and never goes through here.

Who is killed meanwhile leaves the private name behind, and it may be as large as the result. It
says whose it is, so that the next one to write into the same directory, on that host, removes it.
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
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a private path to write to; when the block ends, what is there is at `path`, synced.

    If the block raises, nothing is left of it, and `path` is as it was.
    """
    final = Path(path)
    private = private_beside(final)
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
    """Yield a private directory beside `path`; what is left of it when the block ends is removed.

    The block may move it away.
    """
    private = private_beside(Path(path))
    private.mkdir()
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def private_beside(final: Path) -> Path:
    """Return a name that nobody else has, in the directory of `final`."""
    _remove_what_the_killed_left(final.parent.absolute())
    return final.with_name(f".{final.name[:120]}.{_here()}-{os.getpid()}-{secrets.token_hex(4)}")


_PRIVATE: Final = r"\..+\.{here}-(\d+)-[0-9a-f]{{8}}"


@functools.cache
def _here() -> str:
    """Return what tells the processes of this host, or container, from those of others."""
    facts = [socket.gethostname()]
    for path, read in (("/etc/machine-id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            facts.append(str(read(Path(path))))
        except OSError:
            continue  # not on every system
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


@functools.cache
def _remove_what_the_killed_left(directory: Path) -> None:
    """Remove private names of processes of this host that are gone; once per process."""
    pattern = re.compile(_PRIVATE.format(here=_here()))
    try:
        found = [
            (name, match) for name in os.listdir(directory) if (match := pattern.fullmatch(name))
        ]
    except OSError:
        return  # whoever is about to write there says why it cannot be
    for path in (directory / name for name, match in found if _is_gone(int(match[1]))):
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            log.debug("%s is left behind: %s", path, error)  # another user's, or another removes it


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is somebody else's
    return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Let a file appear whole: write it under a private name beside its place, then move it there.

For what a person asks for by name: merged tables, prepared sequences. Such a file replaces the one
of an earlier run, as a compiler's output does; whoever reads meanwhile has the old one or the new.
What a pool publishes is never replaced, and never goes through here.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a private path to write to; when the block ends, what is there is at `path`, synced.

    If the block raises, nothing is left of it, and `path` is as it was.
    """
    final = Path(path)
    private = final.with_name(f".{final.name[:120]}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield private
        _sync(private)
        os.replace(private, final)
        _sync(final.parent)
    except BaseException:
        private.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

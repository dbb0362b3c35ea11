"""A pool for hostile files, and the errors that readers of them may raise."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from fsqueue.errors import FsqueueError
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, create_pool

ME = "host-1-abcdef"
TOKENS = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"Infinity"),
    *(b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"1e-320", b"18446744073709551616"),
    *(b"../../../etc/passwd", b"\\u001b[2J", b"\\ud800", b"\x00", b"\xff\xfe", b"\n", b"\r", b"/"),
)
"""Byte sequences that often break readers of JSON, numbers and paths."""


@cache
def pool() -> PoolDirectory:
    """Return this process's pool, on a memory disk if there is one."""
    return create_pool(str(directory() / "pool"))


@cache
def directory() -> Path:
    """Return a private directory of this process; scripts/fuzz removes it with its TMPDIR."""
    memory = "/dev/shm" if "TMPDIR" not in os.environ and os.path.isdir("/dev/shm") else None
    return Path(tempfile.mkdtemp(prefix="fsqueue-fuzz-", dir=memory))


@cache
def spool() -> str:
    """Return the name of the pool's one spool."""
    return add_spool(pool(), Spool("gpu0", "RTX 3090", 1.0)).name


def put(path: str, data: bytes) -> None:
    """Make `path` a file of ours that holds `data`."""
    with open(path, "wb") as file:
        file.write(data)


@contextmanager
def typed_errors_only() -> Iterator[None]:
    """Allow errors that a user sees as one line; anything else is a finding."""
    try:
        yield
    except FsqueueError as error:
        assert str(error), "an error without a message"
        assert "\n" not in str(error) or "store" in str(error), f"more than one line: {error!r}"


def is_usable(number: object) -> bool:
    """Return whether a number is finite."""
    return isinstance(number, int | float) and math.isfinite(number)


def pick(data: bytes, choices: int) -> tuple[int, bytes]:
    """Return what the first byte chooses, and the remaining bytes."""
    return (data[0] % choices, data[1:]) if data else (0, b"")

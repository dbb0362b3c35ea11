"""Begin reading a gzip file in its middle, at a point that was remembered when it was planned.

gzip can only be read from the start, so each of forty claims of a file would decompress on average
half of it. While a file is planned, the indexed_gzip library finds points at which decompression
can begin: a place, and the 32 KiB before it. A claim carries the last point before its first byte.

The library is optional (`pip install fsqueue[gzip]`): without it, in the planner or in the worker,
everything works as before, more slowly. The one door to indexed_gzip.

What this module does not know: FASTA, claims, and digests: its callers check what they read.
"""

from __future__ import annotations

import base64
import bisect
import io
import struct
import zlib
from dataclasses import dataclass
from typing import IO, Any, Final

from embed.inputs.fasta import GZIP

SPACING: Final = 4 << 20
"""Uncompressed bytes between two points. A claim decompresses half of it for nothing, on average;
a point takes 32 KiB of the planner's memory, and about as much in its claim."""
WINDOW: Final = 32 << 10
_HEAD: Final = struct.Struct("<5sBBQQIII")
_POINT: Final = struct.Struct("<QQBB")
_MAGIC: Final = b"GZIDX"


def library() -> Any:
    """Return indexed_gzip, or None if it is not installed."""
    try:
        import indexed_gzip
    except ImportError:
        return None
    return indexed_gzip


@dataclass(frozen=True, slots=True)
class Restart:
    """A point of one gzip file: the library's own index, with no other point but the end."""

    position: int
    """Where it is in the uncompressed data."""
    index: bytes

    def encode(self) -> str:
        """Return it as text."""
        return base64.b85encode(zlib.compress(self.index, 6)).decode()

    @classmethod
    def decode(cls, text: str) -> Restart:
        """Return what `encode` made text of. Raises ValueError."""
        try:
            index = zlib.decompress(base64.b85decode(text))
            _, position, _, _ = _POINT.unpack_from(index, _HEAD.size)
        except (zlib.error, struct.error) as error:
            raise ValueError(f"not a restart point: {error}") from error
        return cls(position, index)

    def open(self, path: str) -> IO[bytes] | None:
        """Open a file for reading from this point on; None if that is not possible here.

        Reading may raise OSError for a file that has changed.
        """
        found = library()
        if found is None:
            return None
        file = found.IndexedGzipFile(path, spacing=SPACING, auto_build=False)
        try:
            file.import_index(fileobj=io.BytesIO(self.index))
        except (OSError, ValueError):  # another version of the library, or another file
            file.close()
            return None
        return file  # type: ignore[no-any-return]


class RestartPoints:
    """The points of one file, in order."""

    def __init__(self, index: bytes) -> None:
        """`index` is what the library exports. Raises ValueError if it is of an unknown kind."""
        magic, version, flags, *sizes, count = _HEAD.unpack_from(index)
        if magic != _MAGIC or version != 1:
            raise ValueError("an index of another version")
        self._head = magic, version, flags, *sizes
        at, windows = _HEAD.size, _HEAD.size + count * _POINT.size
        self._points: list[tuple[int, bytes]] = []
        for number in range(count):
            point = index[at + number * _POINT.size :][: _POINT.size]
            _, position, _, has_window = _POINT.unpack(point)
            window = index[windows : windows + WINDOW] if has_window else b""
            windows += len(window)
            self._points.append((position, point + window))
        self._positions = [position for position, _ in self._points]

    def before(self, position: int) -> Restart | None:
        """Return the last point that is not after a position; None if that is the start."""
        number = bisect.bisect_right(self._positions, position) - 1
        if number < 1:
            return None
        found, data = self._points[number]
        # The library looks things up only between two points, so the file's end is another one.
        end = _POINT.pack(*self._head[3:5], 0, 0)
        index = _HEAD.pack(*self._head, 2) + data[: _POINT.size] + end + data[_POINT.size :]
        return Restart(found, index)


class LazyRestarts:
    """The restart points of a file that may be gzip; found when they are asked for.

    Only files that are divided need them, and that is known late. Finding them reads the file once
    more, at the speed of zlib.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._points: RestartPoints | None = None
        self._is_known = False

    def before(self, position: int) -> Restart | None:
        """Return the last point that is not after a position; None if that is the start."""
        if position < SPACING:
            return None
        if not self._is_known:
            self._points, self._is_known = _find(self._path), True
        return self._points.before(position) if self._points else None


def _find(path: str) -> RestartPoints | None:
    found = library()
    try:
        with open(path, "rb") as raw:
            if found is None or raw.read(2) != GZIP:
                return None
        with found.IndexedGzipFile(path, spacing=SPACING, window_size=WINDOW) as file:
            file.build_full_index()
            exported = io.BytesIO()
            file.export_index(fileobj=exported)
        return RestartPoints(exported.getvalue())
    except (OSError, EOFError, ValueError, struct.error, zlib.error):
        return None  # it was read whole before, so this costs speed only

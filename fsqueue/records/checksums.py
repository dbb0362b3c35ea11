"""Record the size, checksum and provenance of every output when it is published; read the records.

R32 A record is written by the process whose output was published, after it was, and from the
    private file: so it describes the bytes that were meant, and no process that lost writes one.
R33 An output is called damaged only if it has records and matches none of them. An output without
    a record (its worker was killed in between, or was of an earlier version) is only counted.
R78 What made an output is in its record: which attempt, and how long it took, on its own line; the
    worker's host, GPU and versions on lines before it, once and again when they change. So no claim
    costs a file operation more, and the record of an output stays when workers are forgotten.

The records are in checksums/WORKER.jsonl: one writer each, append-only, a line per output, so that
a claim costs no inode more. They are not in the journal, whose removal must lose nothing (I8), nor
in the claim's file, whose bytes never change (I4). A CRC-32 is enough against damage, which is all
this is for, and reads 6.5 GB/s where SHA-256 reads 1.9. `history.provenance` reads the rest.

    {"worker":{"host":"node7","cpu":...,"gpu":{...},...}}
    {"versions":{"torch":"2.13.0",...}}
    {"output":"a-5c1f.out","bytes":9,"crc32":"...","t":1795000000.1,"attempt":0,...}

What this module does not know: what an output is, or when it is missing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fsqueue.errors import PoolError
from fsqueue.pool.layout import SUFFIX
from fsqueue.pool.names import ID
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories

log = logging.getLogger(__name__)

PIECE: Final = 1 << 20
LINE_MAX: Final = 1 << 16
OUTPUT: Final = re.compile(rf"{ID.pattern}{SUFFIX.pattern}", re.ASCII)
_CRC: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: its size and its CRC-32, as eight hexadecimal digits."""

    size: int
    crc32: str


def measure(path: str | os.PathLike[str]) -> Content:
    """Read a file, and return its size and checksum. Raises OSError."""
    fd = atomic.os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        size, crc = 0, 0
        while piece := atomic.os.read(fd, PIECE):
            size += len(piece)
            crc = zlib.crc32(piece, crc)
        return Content(size, f"{crc:08x}")
    finally:
        atomic.os.close(fd)


class Checksums:
    """The records of one process; the file is made at the first one."""

    def __init__(
        self,
        pool: PoolDirectory,
        writer: str,
        about: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
    ) -> None:
        """`about` returns what holds for many outputs: the same objects until it changes."""
        self._path = pool.checksums(writer)
        self._file: atomic.Appender | None = None
        self._about = about
        self._told: dict[str, Mapping[str, Any]] = {}

    def record(self, output: str, content: Content, **made: float) -> None:
        """Record a published output by its name in outputs/. An error never stops the work."""
        assert OUTPUT.fullmatch(output), output
        facts = {"output": output, "bytes": content.size, "crc32": content.crc32} | made
        try:
            about = self._about()
        except Exception:  # it asks modules of a user's, and may cost the claim nothing
            log.warning("what this worker runs on cannot be recorded", exc_info=True)
            about = {}
        news = {key: each for key, each in about.items() if self._told.get(key) is not each}
        lines: list[Mapping[str, Any]] = [{key: each} for key, each in news.items()]
        lines.append(facts)
        try:
            if self._file is None:
                directories.make(os.path.dirname(self._path))
                self._file = atomic.Appender(self._path)
            self._file.line("\n".join(map(_json, lines)).encode())
            self._told |= news
        except (OSError, PoolError):
            self.close()  # the output then has no record, and is whole all the same

    def close(self) -> None:
        """Close the file, if it was ever opened."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass  # as above
            self._file = None
            self._told = {}


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, separators=(",", ":"), default=str)


def read_records(pool: PoolDirectory) -> Iterator[tuple[str, Content]]:
    """Yield every record: an output's name in outputs/, and its content when it was published.

    Lines that are not records are skipped, and files that cannot be read.
    """
    for _, line in read_lines(pool):
        if b'"output"' in line and (record := parse_record(line)) is not None:
            yield record


def read_lines(pool: PoolDirectory) -> Iterator[tuple[str, bytes]]:
    """Yield every line with the worker that wrote it, one file after the other."""
    try:
        listed = atomic.names(pool.checksums())
    except PoolError:
        return  # none was written yet
    for name in sorted(listed):
        try:
            fd = atomic.open_for_reading(f"{pool.checksums()}/{name}")[0]
        except (OSError, PoolError):
            continue
        with os.fdopen(fd, "rb") as file:
            while line := file.readline(LINE_MAX):
                yield name.removesuffix(".jsonl"), line


def parse_record(line: bytes) -> tuple[str, Content] | None:
    """Return the output that a line is about and its content, None if it is no such line."""
    try:
        facts = json.loads(line)
        output, size, crc32 = facts["output"], facts["bytes"], facts["crc32"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if (
        isinstance(output, str)
        and OUTPUT.fullmatch(output)
        and type(size) is int
        and isinstance(crc32, str)
        and _CRC.fullmatch(crc32)
    ):
        return output, Content(size, crc32)
    return None


@dataclass(frozen=True, slots=True)
class Verified:
    """What a comparison of outputs with their records found."""

    damaged: dict[str, str]
    """What is wrong with each damaged output, by its name in outputs/."""
    matching: int
    """How many records an output matches; one for each output, but for those made again."""


def verify_outputs(pool: PoolDirectory, *, deep: bool = False) -> Verified:
    """Compare every output that is there with its records: by size, or `deep`, by checksum."""
    wrong: dict[str, str] = {}
    matching = 0
    for output, meant in read_records(pool):
        what = _difference(pool, output, meant, deep=deep)
        if what:
            wrong[output] = what
        elif what is not None:
            matching += 1
    for output, meant in read_records(pool) if wrong else ():
        if output in wrong and not _difference(pool, output, meant, deep=deep):
            del wrong[output]  # R33: it was set aside and made again, and matches its new record
    return Verified(wrong, matching)


def _difference(pool: PoolDirectory, output: str, meant: Content, *, deep: bool) -> str | None:
    """Return what is wrong with an output; "" if nothing is, None if it is not there."""
    path = f"{pool.directory('outputs')}/{output}"
    try:
        size = os.lstat(path).st_size
        if size != meant.size:
            return f"has {size:,} bytes, and {meant.size:,} were published"
        if deep and (found := measure(path)) != meant:
            return f"has the checksum {found.crc32}, and {meant.crc32} was published"
    except FileNotFoundError:
        return (
            None  # RACE: set aside by a repair; else it is missing, which its claim's state shows
        )
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""

"""Print long documents piece by piece: lines, and JSON lists, to stdout or to a whole file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Final

import click

from fsqueue.errors import UsageError
from fsqueue.pool.overwriting import (
    Earlier,
    planned_inputs,
    refuse_inside,
    refuse_overwriting,
)
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic

LINES_AT_ONCE: Final = 500
RECOGNISED: Final = 4096
"""How many characters of an earlier document are read to recognise it."""
REPORT_MARKS: Final = ('content="fsqueue report"', "<title>fsqueue: ")
TRACE_MARKS: Final = ('{"traceEvents": [\n',)
"""No other program ends its line there."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a command's document goes: a file that a person named, or stdout."""

    path: str | None
    begins: tuple[str, ...]
    """How an earlier document of this command begins: what else is there is not replaced."""
    force: bool = False

    def check(self, pool: PoolDirectory) -> None:
        """Raise UsageError if the file must not be written (`pool.overwriting`)."""
        if self.path is not None:
            refuse_inside(pool, self.path)
            refuse_overwriting(
                self.path,
                inputs=planned_inputs(pool),
                recognise=self._recognise,
                force=self.force,
                option="-o ",
            )

    def _recognise(self, path: str) -> Earlier:
        with open(path, encoding="utf-8", errors="replace") as file:
            head = file.read(RECOGNISED)
        if not head or any(mark in head for mark in self.begins):
            return Earlier.SAME
        ours = any(mark in head for mark in (*REPORT_MARKS, *TRACE_MARKS))
        return Earlier.OTHER if ours else Earlier.FOREIGN


def write_lines(lines: Iterator[str], pool: PoolDirectory, to: Destination) -> None:
    """Print lines, or write them to a file that appears whole or not at all."""
    if to.path is None:
        return print_lines(lines)
    to.check(pool)
    directory, name = os.path.split(os.path.abspath(to.path))
    # One name for each target, so that what a killed process left there is used by the next.
    part = f"{directory}/.{name[:120]}.fsqueue-part"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with open(fd, "w", encoding="utf-8", errors="replace") as file:
            print_lines(lines, file)
        os.replace(part, to.path)
    except OSError as error:
        atomic.discard(part)
        raise UsageError(
            f"{to.path} cannot be written: {error.strerror}. Name another file: -o FILE"
        ) from error
    except BaseException:
        atomic.discard(part)
        raise
    return None


def print_lines(lines: Iterator[str], file: IO[str] | None = None) -> None:
    """Print lines many at a time."""
    while batch := list(islice(lines, LINES_AT_ONCE)):
        click.echo("\n".join(batch), file=file)


def json_list(key: str, entries: Iterable[object]) -> Iterator[str]:
    """Yield one JSON document that holds a list, a line per entry."""
    yield f'{{"{key}": ['
    before = ""
    for entry in entries:
        if before:
            yield f"{before},"
        before = json.dumps(entry, separators=(",", ":"))
    yield f"{before}]}}"

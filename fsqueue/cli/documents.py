"""Print long documents piece by piece: lines, and JSON lists, to stdout or to a whole file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Final

import click

from fsqueue.errors import UsageError

LINES_AT_ONCE: Final = 500


def write_lines(lines: Iterator[str], output: str | None) -> None:
    """Print lines, or write them to a file that appears whole or not at all."""
    if output is None:
        return print_lines(lines)
    part = f"{os.path.abspath(output)}.part"
    try:
        with open(part, "w", encoding="utf-8", errors="replace") as file:
            print_lines(lines, file)
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written: {error.strerror}. Name another file: -o FILE"
        ) from error
    os.replace(part, output)
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

"""Commands that tell what happened, from the workers' journals: joblog, trace, report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import IO, Final

import click

from fsqueue.cli.options import SETTINGS, json_option, output_option, pool_argument
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.monitor.attempts import Attempted, attempts
from fsqueue.pool.settings import PoolDirectory

LINES_AT_ONCE: Final = 500
COLUMNS: Final = (
    "Seq Host Starttime JobRuntime Send Receive Exitval Signal Command "
    "Worker Attempt Ending StolenFrom Kind Cost"
).split()
EXIT_VALUES: Final = {
    "done": 0,
    "failed": 1,
    "released": int(ExitStatus.DRAINED),
    "killed": -1,
    "lost": -1,
}

JOBLOG_EPILOG = """\b
The first nine columns are those of GNU parallel's --joblog; Command is the
claim's ID. Exitval is 0 done, 1 failed (or what its program exited with, 128
more than a signal), -1 killed, or lost by a worker that was declared dead, 75
put back by a worker that left. Ending says the same in a word. StolenFrom is
the spool that lost the claim to the worker. What nobody knows is -.

\b
  fsqueue joblog pool/ | awk '$7 != 0'           what did not end well
  fsqueue joblog pool/ | sort -k4,4nr | head     the longest
  fsqueue joblog pool/ | column -t | less -S

Attempts that still run are not in it: fsqueue workers POOL.
"""


@click.command("joblog", context_settings=SETTINGS, epilog=JOBLOG_EPILOG)
@pool_argument
@json_option
def joblog(pool: PoolDirectory, as_json: bool) -> None:
    """List every attempt at every claim that has ended, in that order, as GNU parallel does."""
    ended = (attempt for attempt in attempts(pool) if attempt.ending != "running")
    if as_json:
        return _print(_document("attempts", map(asdict, ended)))
    rows = (_row(number, attempt) for number, attempt in enumerate(ended, 1))
    return _print("\t".join(row) for row in _with_header(rows))


def _with_header(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    yield COLUMNS
    yield from rows


def _row(number: int, attempt: Attempted) -> list[str]:
    code = attempt.returncode
    exit_value = EXIT_VALUES.get(attempt.ending)
    if code and attempt.ending == "failed":
        exit_value = code if code > 0 else 128 - code
    cells = (
        number,
        attempt.host,
        _seconds(attempt.started),
        _seconds(attempt.seconds),
        0,
        0,
        exit_value,
        -code if code is not None and code < 0 else 0,
        attempt.id,
        attempt.worker,
        attempt.attempt,
        attempt.ending,
        attempt.spool if attempt.stolen else None,
        attempt.kind,
        None if attempt.cost is None else f"{attempt.cost:.0f}",
    )
    return ["-" if cell is None or cell == "" else str(cell) for cell in cells]


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


@click.command("trace", context_settings=SETTINGS)
@pool_argument
@output_option
def trace(pool: PoolDirectory, output: str | None) -> None:
    """Draw every attempt on a lane per worker, as a trace that ui.perfetto.dev opens.

    Steals are arrows from the spool that lost a claim. The file stays on your machine: Perfetto
    reads it in the browser. Chrome's own chrome://tracing opens it too.
    """
    from fsqueue.monitor.trace import records

    _write(_document("traceEvents", records(attempts(pool))), output)


@click.command("report", context_settings=SETTINGS)
@pool_argument
@output_option
def report(pool: PoolDirectory, output: str | None) -> None:
    """Write how a pool went, or goes, as one HTML page.

    What is done, who did what when, what was stolen, what failed with its last lines. The page
    loads nothing from elsewhere; send it to whoever asks.
    """
    from fsqueue.monitor.report import page

    _write(page(pool), output)


def _write(text: Iterator[str], output: str | None) -> None:
    """Print lines, or write them to a file that appears whole."""
    if output is None:
        return _print(text)
    part = f"{os.path.abspath(output)}.part"
    try:
        with open(part, "w", encoding="utf-8", errors="replace") as file:
            _print(text, file)
    except OSError as error:
        raise UsageError(
            f"{output} cannot be written: {error.strerror}. Name another file: -o FILE"
        ) from error
    os.replace(part, output)
    return None


def _document(key: str, entries: Iterable[object]) -> Iterator[str]:
    """Yield one JSON document that holds a list, a line per entry."""
    yield f'{{"{key}": ['
    before = ""
    for entry in entries:
        if before:
            yield f"{before},"
        before = json.dumps(entry, separators=(",", ":"))
    yield f"{before}]}}"


def _print(lines: Iterator[str], file: IO[str] | None = None) -> None:
    while batch := list(islice(lines, LINES_AT_ONCE)):
        click.echo("\n".join(batch), file=file)

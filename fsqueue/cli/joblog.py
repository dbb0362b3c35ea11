"""`fsqueue joblog`: every attempt that has ended, as GNU parallel lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import click

from fsqueue.api import Pool
from fsqueue.cli.documents import json_list, print_lines
from fsqueue.cli.options import SETTINGS, json_option, pool_argument
from fsqueue.errors import ExitStatus
from fsqueue.history.attempts import Attempted, attempts

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

EPILOG = """\b
The first nine columns are those of GNU parallel's --joblog; Command is the
claim's ID. Exitval is 0 done; 1 failed, or the exit status of its program (128
more than a signal); -1 killed, or lost by a worker that was declared dead; 75
put back by a worker that left. Ending has the same as a word. StolenFrom is
the spool that lost the claim to the worker. What is not known is -.

\b
  fsqueue joblog pool/ | awk '$7 != 0'           what did not end well
  fsqueue joblog pool/ | sort -k4,4nr | head     the longest
  fsqueue joblog pool/ | column -t | less -S

For attempts that are still running: fsqueue workers POOL.
"""


@click.command("joblog", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@json_option
def joblog(pool: Pool, as_json: bool) -> None:
    """List every attempt that has ended, in order, like GNU parallel's --joblog."""
    ended = (attempt for attempt in attempts(pool) if attempt.ending != "running")
    if as_json:
        return print_lines(json_list("attempts", map(asdict, ended)))
    rows = (_row(number, attempt) for number, attempt in enumerate(ended, 1))
    return print_lines("\t".join(row) for row in _with_header(rows))


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

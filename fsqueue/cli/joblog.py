"""`fsqueue joblog`: every attempt that has ended, as GNU parallel lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Final

import click

from fsqueue.api import Pool
from fsqueue.cli.documents import json_list, print_lines
from fsqueue.cli.options import SETTINGS, inputs_option, json_option, pool_argument
from fsqueue.errors import ExitStatus
from fsqueue.history.attempts import Attempted, Ending, attempts
from fsqueue.storage.untrusted import printable

COLUMNS: Final = (
    "Seq Host Starttime JobRuntime Send Receive Exitval Signal Command "
    "Worker Attempt Ending StolenFrom Kind Cost"
).split()
EXIT_VALUES: Final = {
    Ending.DONE: 0,
    Ending.FAILED: 1,
    Ending.RELEASED: int(ExitStatus.DRAINED),
    Ending.KILLED: -1,
    Ending.LOST: -1,
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
@inputs_option
@json_option
def joblog(pool: Pool, with_inputs: bool, as_json: bool) -> None:
    """List every attempt that has ended, in order, like GNU parallel's --joblog."""
    ended = (attempt for attempt in attempts(pool) if attempt.ending != Ending.RUNNING)
    inputs: dict[str, tuple[str, ...]] = {}
    if with_inputs:
        from fsqueue.monitor.locate import input_claims

        inputs = {claim.id: claim.inputs for claim in input_claims(pool)}
    if as_json:
        facts = (_facts(attempt, inputs if with_inputs else None) for attempt in ended)
        return print_lines(json_list("attempts", facts))
    rows = (
        _row(number, attempt) + ([_inputs(inputs.get(attempt.id, ()))] if with_inputs else [])
        for number, attempt in enumerate(ended, 1)
    )
    header = [*COLUMNS, "Inputs"] if with_inputs else COLUMNS
    return print_lines("\t".join(row) for row in chain([header], rows))


def _facts(attempt: Attempted, inputs: dict[str, tuple[str, ...]] | None) -> dict[str, Any]:
    facts = asdict(attempt)
    return facts if inputs is None else facts | {"inputs": inputs.get(attempt.id, ())}


def _inputs(paths: Sequence[str]) -> str:
    """Return paths in one column: a tab or a line break in one is escaped."""
    return ",".join(printable(path, 4000) for path in paths) or "-"


def _row(number: int, attempt: Attempted) -> list[str]:
    code = attempt.returncode
    exit_value = EXIT_VALUES.get(attempt.ending)
    if code and attempt.ending == Ending.FAILED:
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

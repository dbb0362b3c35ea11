"""`fsqueue failed`: which claims failed, and why; what was kept of an attempt."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    json_option,
    matching_options,
    plural,
    pool_argument,
    print_json,
)
from fsqueue.errors import UsageError
from fsqueue.history.failures import (
    FailedAttempt,
    FailedClaim,
    attempts_to_come,
    failed_attempts,
    tail,
    worker_log,
)
from fsqueue.history.select import Matching, select
from fsqueue.monitor import format
from fsqueue.pool.layout import State
from fsqueue.pool.names import ID
from fsqueue.storage.untrusted import printable

LINES_SHOWN: Final = 20
CLAIMS_SHOWN: Final = 20
_ATTEMPT: Final = re.compile(rf"({ID.pattern})(?:\.a(\d{{1,4}}))?(?:\.json)?", re.ASCII)


@click.command("failed", context_settings=SETTINGS)
@pool_argument
@click.option(
    "--log",
    "wanted",
    metavar="ID[.aN]",
    help="Show the errors of this claim's attempts and the tail of their output, wherever the "
    "claim is now; with .aN, everything that was kept of that attempt.",
)
@matching_options
@json_option
def failed(
    pool: Pool,
    wanted: str | None,
    error: str,
    exit_status: int | None,
    kind: str,
    inputs: str,
    as_json: bool,
) -> None:
    """List failed claims with the error of each attempt, and how to put them back.

    \b
    Example:
      fsqueue failed pool/ --exit 137 --input '*.fa'
    """
    matching = Matching(error, exit_status, kind, inputs)
    if wanted is not None:
        if matching:
            raise UsageError("--log shows one claim; leave out what chooses among them.")
        return _show_log(pool, wanted, as_json)
    found = pool.failed(matching)
    again_too = _attempts_to_come(pool, matching)
    if as_json:
        rows = [
            {
                "id": claim.name.id,
                "kind": claim.name.kind,
                "cost": claim.name.cost,
                "attempts": claim.name.attempt + 1,
                "worker": claim.name.owner,
                "errors": [dict(each.record) for each in claim.attempts],
            }
            for claim in found
        ]
        again = [
            {"id": claim.name.id, "errors": [dict(each.record) for each in claim.attempts]}
            for claim in again_too
        ]
        return print_json({"failed": rows, "tried_again": again})
    shown = printable(pool.root)
    _print_claims(found, lambda claim: claim.name.attempt + 1)
    if not found and matching:
        click.echo("No failed claim matches.")
    elif not found:
        click.echo("No claim failed for good." if again_too else "No claim failed.")
    if again_too:
        has = "1 claim has" if len(again_too) == 1 else f"{len(again_too):,} claims have"
        click.echo(f"\n{has} failed attempts and will be tried again:")
        _print_claims(again_too[:CLAIMS_SHOWN], lambda claim: len(claim.attempts))
        if (more := len(again_too) - CLAIMS_SHOWN) > 0:
            click.echo(f"... and {more:,} more")
    if not found:
        return None
    click.echo(f"\nThe tail of its output: fsqueue failed {shown} --log ID")
    return click.echo(f"Put them back:          fsqueue retry {shown} [ID]...")


def _attempts_to_come(pool: Pool, matching: Matching) -> list[FailedClaim]:
    found = attempts_to_come(pool)
    if not matching:
        return found
    chosen = set(select(pool, (State.WAITING, State.RUNNING), matching))
    return [claim for claim in found if claim.name.id in chosen]


def _print_claims(found: list[FailedClaim], attempts: Callable[[FailedClaim], int]) -> None:
    for claim in found:
        name, tried = claim.name, plural(attempts(claim), "attempt")
        click.echo(f"{name.id}  ({name.kind}, cost {name.cost:,}, {tried})")
        for each in claim.attempts:
            when = "--:--:--" if each.at is None else format.clock(each.at)
            click.echo(f"  a{each.attempt}  {when}  {each.worker}: {each.error}")


def _show_log(pool: Pool, wanted: str, as_json: bool) -> None:
    match = _ATTEMPT.fullmatch(wanted)
    if match is None:
        raise UsageError(f"{wanted!r} is not a claim's ID, nor one of its attempts, such as ID.a2.")
    id, number = match[1], match[2]
    kept = failed_attempts(pool, id)
    chosen = [each for each in kept if number is None or each.attempt == int(number)]
    if not chosen:
        there = f"; there are {', '.join(f'a{each.attempt}' for each in kept)}" if kept else ""
        what = f"attempt {number} of {id}" if number else id
        raise UsageError(
            f"no error of {what} is kept in errors/{there}. Where the claim is: fsqueue explain "
            f"{pool.root} {id}"
        )
    if as_json:
        return print_json({"id": id, "errors": [dict(each.record) for each in chosen]})
    for each in chosen:
        _print_attempt(pool, id, each, lines_max=None if number else LINES_SHOWN)
    return None


def _print_attempt(pool: Pool, id: str, each: FailedAttempt, *, lines_max: int | None) -> None:
    click.echo(f"{id}.a{each.attempt}  {_local(each.at)}  {each.worker}")
    click.echo(f"  {each.error}")
    lines = each.output_lines
    shown = lines if lines_max is None else lines[-lines_max:]
    if len(shown) < len(lines):
        more = plural(len(lines) - len(shown), "line")
        click.echo(f"    ({more} before: fsqueue failed POOL --log {id}.a{each.attempt})")
    _print_indented(shown)
    if not lines and (path := worker_log(pool, each)):
        click.echo(f"  no output was kept; its worker's log ends with ({path}):")
        _print_indented(tail(path)[-LINES_SHOWN:])
    click.echo()


def _print_indented(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"    {line}")


def _local(at: float | None) -> str:
    if at is None:
        return "?"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "?"

"""`fsqueue failed`: which claims failed, and why; what was kept of an attempt."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from fsqueue.cli.options import SETTINGS, json_option, pool_argument, print_json
from fsqueue.errors import PoolError, UsageError
from fsqueue.monitor import format
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import ID, WORKER, ClaimName, Role, role_of
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.status import read_status
from fsqueue.pool.untrusted import printable, read_json
from fsqueue.slurm.allocation import Job
from fsqueue.storage import atomic

LINES_SHOWN: Final = 20
TAIL_BYTES: Final = 16 << 10
_ASKED: Final = re.compile(rf"({ID.pattern})(?:\.a(\d{{1,4}}))?(?:\.json)?", re.ASCII)


@click.command("failed", context_settings=SETTINGS)
@pool_argument
@click.option(
    "--log",
    "asked",
    metavar="ID[.aN]",
    help="Show the errors of this claim's attempts and the tail of their output, wherever the "
    "claim is now; all that was kept of one attempt with .aN.",
)
@json_option
def failed(pool: PoolDirectory, asked: str | None, as_json: bool) -> None:
    """List the claims that failed, with the error of each attempt, and how to put them back."""
    if asked is not None:
        return _show_log(pool, asked, as_json)
    found = sorted(claims.owned(pool, State.FAILED), key=lambda name: name.id)
    if as_json:
        return print_json({"failed": [_facts(pool, name) for name in found]})
    if not found:
        return click.echo("No claim failed.")
    for name in found:
        click.echo(f"{name.id}  ({name.kind}, cost {name.cost:,}, {name.attempt + 1} attempts)")
        for record in _history(pool, name):
            click.echo(f"  {_attempt_line(record)}")
    shown = printable(pool.root)
    click.echo(f"\nThe tail of its output: fsqueue failed {shown} --log ID")
    return click.echo(f"Put them back:          fsqueue retry {shown} [ID]...")


def _attempt_line(record: dict[str, Any]) -> str:
    at = record.get("at")
    when = format.clock(at) if isinstance(at, int | float) else "--:--:--"
    return f"a{record['attempt']}  {when}  {_worker(record)}: {_error(record)}"


def _worker(record: dict[str, Any]) -> str:
    return printable(record.get("worker", "?"), 80)


def _error(record: dict[str, Any]) -> str:
    return printable(record.get("error", "?"), 2000)


def _facts(pool: PoolDirectory, name: ClaimName) -> dict[str, Any]:
    return {
        "id": name.id,
        "kind": name.kind,
        "cost": name.cost,
        "attempts": name.attempt + 1,
        "worker": name.owner,
        "errors": _history(pool, name),
    }


def _history(pool: PoolDirectory, name: ClaimName) -> list[dict[str, Any]]:
    """Return what is kept of the attempts of a failed claim.

    `fsqueue cancel` may be killed between the claim's move and the record of it: before it, an
    attempt might begin whose own record could then not be written.
    """
    found = list(_records(pool, name.id, range(name.attempt + 1)))
    is_cancelled = role_of(name.owner or "") is Role.CANCEL
    if is_cancelled and not any(each["attempt"] == name.attempt for each in found):
        found.append({"attempt": name.attempt, "worker": name.owner, **claims.CANCELLED_WAITING})
    return found


def _records(pool: PoolDirectory, id: str, attempts: range | list[int]) -> Iterator[dict[str, Any]]:
    """Yield what is kept of each attempt, the first one first."""
    for attempt in attempts:
        try:
            record = read_json(pool.error(id, attempt), patience_s=0.0)
        except FileNotFoundError:
            continue  # RACE: not in sight yet on a network mount; or somebody tidied up
        except (OSError, PoolError) as error:
            record = {"error": f"its record cannot be read: {error}"}
        yield record | {"attempt": attempt}


# ---- --log ----


def _show_log(pool: PoolDirectory, asked: str, as_json: bool) -> None:
    match = _ASKED.fullmatch(asked)
    if match is None:
        raise UsageError(f"{asked!r} is no claim's ID, nor one attempt of it, such as ID.a2.")
    id, attempt = match[1], match[2]
    kept = _attempts_kept(pool, id)
    chosen = [number for number in kept if attempt is None or number == int(attempt)]
    if not chosen:
        has = f"; there are {', '.join(f'a{n}' for n in kept)}" if kept else ""
        what = f"attempt {attempt} of {id}" if attempt else id
        raise UsageError(
            f"no error of {what} is kept in errors/{has}. Where it is: fsqueue explain "
            f"{pool.root} {id}"
        )
    records = list(_records(pool, id, chosen))
    if as_json:
        return print_json({"id": id, "errors": records})
    for record in records:
        _print_attempt(pool, id, record, lines_max=None if attempt else LINES_SHOWN)
    return None


def _attempts_kept(pool: PoolDirectory, id: str) -> list[int]:
    """Return which attempts left a record; a claim that was retried may have skipped numbers."""
    pattern = re.compile(rf"{re.escape(id)}\.a(\d{{1,4}})\.json")
    found = map(pattern.fullmatch, atomic.names(pool.directory("errors")))
    return sorted(int(match[1]) for match in found if match)


def _print_attempt(
    pool: PoolDirectory, id: str, record: dict[str, Any], *, lines_max: int | None
) -> None:
    attempt, at = record["attempt"], record.get("at")
    when = _local(at) if isinstance(at, int | float) else "?"
    click.echo(f"{id}.a{attempt}  {when}  {_worker(record)}")
    click.echo(f"  {_error(record)}")
    lines = str(record.get("detail") or "").splitlines()
    shown = lines if lines_max is None else lines[-lines_max:]
    if len(shown) < len(lines):
        more = len(lines) - len(shown)
        click.echo(f"    ({more:,} lines before: fsqueue failed POOL --log {id}.a{attempt})")
    _print_indented(shown)
    if not lines and (path := _worker_log(pool, record)):
        click.echo(f"  nothing was kept of its output; its worker's log ends so ({path}):")
        _print_indented(_tail(path)[-LINES_SHOWN:])
    click.echo()


def _print_indented(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"    {printable(line, 2000)}")


def _local(at: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return "?"


def _worker_log(pool: PoolDirectory, record: dict[str, Any]) -> str:
    """Return where the worker of an attempt logged, if it ran in an array of `fsqueue slurm`."""
    worker = record.get("worker")
    if not (isinstance(worker, str) and WORKER.fullmatch(worker)):
        return ""
    status = read_status(pool, worker)
    job = Job.of(status.slurm) if status is not None else None
    path = f"{pool.directory('events')}/slurm-{job.name}.log" if job else ""
    return path if path and os.path.isfile(path) else ""


def _tail(path: str) -> list[str]:
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode("utf-8", "replace").splitlines()

"""Commands that look at a pool until it is done, and change nothing: watch, wait."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

import click

from fsqueue.cli.options import SETTINGS, Duration, pool_argument, print_json
from fsqueue.cli.shapes import EXIT_STATUS, watch_facts
from fsqueue.loglines import Lines, counted, follow
from fsqueue.pool import Pool
from fsqueue.snapshot import Reader


@click.command("wait", context_settings=SETTINGS, epilog=EXIT_STATUS)
@pool_argument
@click.option("--timeout", type=Duration(), help="Give up after so long, such as 1h30m.")
@click.option("--interval", type=Duration(), default=2.0, show_default=True, help="Look so often.")
def wait(pool: Pool, timeout: float | None, interval: float) -> None:
    """Wait until nothing waits and nothing runs.

    Troubles are said on stderr as they begin; a terminal also gets a progress line.
    """
    reader, lines = Reader(pool), Lines()
    deadline = time.monotonic() + timeout if timeout is not None else float("inf")
    live = sys.stderr.isatty()
    while True:
        snapshot = reader.snapshot()
        for line in lines.notices(snapshot, time.monotonic()):
            click.echo(f"\r\x1b[K{line}" if live else line, err=True)
        left = deadline - time.monotonic()
        if snapshot.finished or left <= 0:
            break
        if live:
            width = max(20, _terminal_width(sys.stderr.fileno()) - 1)
            click.echo(f"\r\x1b[K{counted(snapshot)[:width]}", nl=False, err=True)
        time.sleep(min(max(interval, 0.05, 5 * snapshot.took_s), left))
    if live:
        click.echo("\r\x1b[K", nl=False, err=True)
    click.echo(counted(snapshot))
    sys.exit(snapshot.exit_status)


def _terminal_width(fd: int) -> int:
    try:
        return os.get_terminal_size(fd).columns
    except OSError:
        return 80


WATCH_EPILOG = """\b
Keys: q quit, s sort, w by worker or by spool, f failed claims, e steals,
m memory, ? help.

\b
It ends when everything is done, with the exit status of `fsqueue status`:
0 done, 3 some claims failed, 5 work remains (after q, --once).
Without a terminal it writes lines: every event at once, and one line per
spool every 10 s. Several may watch one pool; none of them changes it.
"""


@click.command("watch", context_settings=SETTINGS, epilog=WATCH_EPILOG)
@pool_argument
@click.option("--interval", type=Duration(), default=2.0, show_default=True, help="Look so often.")
@click.option("--once", is_flag=True, help="Show how things are, once.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document; without --once one at each look, a line each.",
)
@click.option(
    "--events",
    type=click.IntRange(0, 50),
    default=8,
    show_default=True,
    help="Show so many of the last steals.",
)
@click.option("--no-memory", is_flag=True, help="Leave out the memory column.")
@click.option(
    "--by",
    type=click.Choice(["spool", "worker"]),
    default="spool",
    show_default=True,
    help="One row for each.",
)
@click.option(
    "--stall-threshold",
    type=Duration(),
    default=300.0,
    show_default=True,
    help="A worker without progress for so long is stalled.",
)
def watch(pool: Pool, **given: Any) -> None:
    """Watch a pool live, until everything is done."""
    reader = Reader(pool)
    reader.roster.stall_s = given["stall_threshold"]
    if given["as_json"]:
        _watch_json(reader, given["interval"], given["once"])
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if not on_terminal and not given["once"]:
        sys.exit(
            follow(pool, interval_s=given["interval"], echo=click.echo, reader=reader).exit_status
        )
    from fsqueue import dashboard

    by_worker = given["by"] == "worker"
    view = dashboard.View(given["events"], memory=not given["no_memory"], by_worker=by_worker)
    if given["once"]:
        snapshot = reader.snapshot()
        dashboard.print_once(snapshot, view)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the terminal is put back
        snapshot = dashboard.show(
            pool, interval_s=given["interval"], view=view, reader=reader, keys=True
        )
    sys.exit(snapshot.exit_status)


def _watch_json(reader: Reader, interval_s: float, once: bool) -> NoReturn:
    while True:
        snapshot = reader.snapshot()
        if once:
            print_json(watch_facts(snapshot))
        else:
            click.echo(json.dumps(watch_facts(snapshot)))
        if once or snapshot.finished:
            sys.exit(snapshot.exit_status)
        time.sleep(max(interval_s, 0.05))

"""`fsqueue watch`: a live table, lines for a log, JSON; and metrics for other programs."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from typing import Any, NoReturn

import click

from fsqueue.cli.json_output import watch_facts
from fsqueue.cli.options import SETTINGS, Duration, pool_argument, print_json
from fsqueue.errors import UsageError
from fsqueue.monitor.log_lines import follow, pause_s
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.pool.settings import PoolDirectory

log = logging.getLogger(__name__)

EPILOG = """\b
Keys: q quit, s sort, w by worker or by spool, f failed claims, e steals,
t tokens/s, m memory, ? help.

\b
It ends when everything is done, with the exit status of `fsqueue status`:
0 done, 3 some claims failed, 5 work remains (after q, --once).
Without a terminal it writes lines: every event at once, and one line per
spool every 10 s. Several may watch one pool; none of them changes it.

\b
For a cron job or a step of a SLURM job:
  fsqueue watch POOL --metrics-only --interval 10    gpu_metrics.log in the pool
  fsqueue watch POOL --once --metrics-only --textfile /var/lib/.../pool.prom
gpu_metrics.log is CSV, has one writer at a time, and is set aside as
gpu_metrics.log.1 when it is larger than 64 MiB.
"""


@click.command("watch", context_settings=SETTINGS, epilog=EPILOG)
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
@click.option("--tokens", is_flag=True, help="Show tokens per second too.")
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
@click.option("--metrics-only", is_flag=True, help="Show nothing; keep gpu_metrics.log instead.")
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False),
    metavar="PATH",
    help="At each look also write metrics there for Prometheus (its name should end in .prom).",
)
def watch(pool: PoolDirectory, **given: Any) -> None:
    """Watch a pool live, until everything is done."""
    reader = Reader(pool)
    reader.roster.stall_s = given["stall_threshold"]
    if given["textfile"]:
        from fsqueue.monitor.prometheus import TextFile

        reader.tell.append(TextFile(given["textfile"]).write)
    if given["metrics_only"]:
        if given["as_json"]:
            raise UsageError("--metrics-only prints nothing, so it does not go with --json.")
        _keep_metrics(reader, given["interval"], given["once"])
    if given["as_json"]:
        _print_json_lines(reader, given["interval"], given["once"])
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if on_terminal or given["once"]:
        snapshot = _draw(pool, reader, given)
    else:
        snapshot = follow(pool, interval_s=given["interval"], echo=click.echo, reader=reader)
    sys.exit(snapshot.exit_status)


def _draw(pool: PoolDirectory, reader: Reader, given: dict[str, Any]) -> Snapshot:
    from fsqueue import dashboard

    view = dashboard.View(
        given["events"],
        memory=not given["no_memory"],
        tokens=given["tokens"],
        by_worker=given["by"] == "worker",
    )
    if given["once"]:
        snapshot = reader.snapshot()
        dashboard.print_once(snapshot, view)
        return snapshot
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the terminal is put back
    return dashboard.show(pool, interval_s=given["interval"], view=view, reader=reader, keys=True)


def _print_json_lines(reader: Reader, interval_s: float, once: bool) -> NoReturn:
    while True:
        snapshot = reader.snapshot()
        if once:
            print_json(watch_facts(snapshot))
        else:
            click.echo(json.dumps(watch_facts(snapshot)))
        if once or snapshot.finished:
            sys.exit(snapshot.exit_status)
        time.sleep(pause_s(interval_s, snapshot))


def _keep_metrics(reader: Reader, interval_s: float, once: bool) -> NoReturn:
    """Append to gpu_metrics.log at each look, if nobody else does, until all is done."""
    from fsqueue.monitor.metrics_log import MetricsLog, metrics_path

    kept = MetricsLog(metrics_path(reader.pool))
    if not kept.writing:
        log.info("another watcher keeps %s", metrics_path(reader.pool))
    reader.tell.append(kept.keep)
    while True:
        snapshot = reader.snapshot()
        if once or snapshot.finished:
            kept.close()
            sys.exit(snapshot.exit_status)
        time.sleep(pause_s(interval_s, snapshot))

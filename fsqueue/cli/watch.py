"""`fsqueue watch`: a live table, lines for a log, JSON; and metrics for other programs."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, Duration, pool_argument, print_json
from fsqueue.errors import UsageError
from fsqueue.monitor.json_documents import watch_facts
from fsqueue.monitor.log_lines import follow, pause_s
from fsqueue.monitor.snapshot import Reader, Snapshot

log = logging.getLogger(__name__)

EPILOG = """\b
Keys: q quit, s sort, w by worker or by spool, f failed claims, e steals,
t rates of counters, m memory, ? help.

\b
It ends when everything is done, with the exit status of `fsqueue status`:
0 done, 1 claims are missing, 3 some claims failed, 5 work remains (after q,
--once). Without a terminal it prints lines: every event at once, and one line
per spool every 10 s (of more than 16 spools, one in all). Several may watch
one pool; none of them changes it.

\b
For a cron job or a step of a SLURM job:
  fsqueue watch POOL --metrics-only --interval 10    gpu_metrics.log in the pool
  fsqueue watch POOL --once --metrics-only --textfile /var/lib/.../pool.prom
gpu_metrics.log is CSV, has one writer at a time, and is set aside as
gpu_metrics.log.1 when it is larger than 64 MiB. time_use.log beside it has
tokens/s and where the time goes, if handlers report that (embed does).
"""


@click.command("watch", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--interval", type=Duration(), default=2.0, show_default=True, help="Refresh interval."
)
@click.option("--once", is_flag=True, help="Show the current state once, then exit.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document; without --once, one per refresh, each on a line.",
)
@click.option(
    "--events",
    type=click.IntRange(0, 50),
    default=8,
    show_default=True,
    help="Number of recent steals to show.",
)
@click.option(
    "--rates",
    "--tokens",
    "rates",
    is_flag=True,
    help="Show the rates of the handlers' own counters, too, such as tokens per second.",
)
@click.option("--no-memory", is_flag=True, help="Hide the memory column.")
@click.option(
    "--by",
    type=click.Choice(["spool", "worker"]),
    default="spool",
    show_default=True,
    help="Show one row per spool or per worker.",
)
@click.option(
    "--stall-threshold",
    type=Duration(),
    default=300.0,
    show_default=True,
    help="Report a worker as stalled after this long without progress.",
)
@click.option("--metrics-only", is_flag=True, help="Show nothing; keep gpu_metrics.log instead.")
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False),
    metavar="PATH",
    help="Also write metrics for Prometheus to PATH at each refresh (the name should end in "
    ".prom).",
)
def watch(
    pool: Pool,
    interval: float,
    once: bool,
    as_json: bool,
    events: int,
    rates: bool,
    no_memory: bool,
    by: str,
    stall_threshold: float,
    metrics_only: bool,
    textfile: str | None,
) -> None:
    """Watch a pool live, until everything is done."""
    reader = Reader(pool, stall_s=stall_threshold)
    if textfile:
        from fsqueue.metrics.prometheus import TextFile

        reader.on_snapshot.append(TextFile(textfile).write)
    if metrics_only:
        if as_json:
            raise UsageError("--metrics-only prints nothing, so it cannot be combined with --json.")
        snapshot = _keep_metrics(reader, interval, once)
    elif as_json:
        snapshot = _repeat(reader, interval, once, _print_document if once else _print_line)
    elif once or sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from fsqueue import dashboard

        view = dashboard.View(events, memory=not no_memory, rates=rates, by_worker=by == "worker")
        if once:
            snapshot = reader.snapshot()
            dashboard.print_once(snapshot, view)
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # restores the terminal
            snapshot = dashboard.show(
                pool, interval_s=interval, view=view, reader=reader, keys=True
            )
    else:
        snapshot = follow(pool, interval_s=interval, echo=click.echo, reader=reader)
    sys.exit(snapshot.exit_status)


def _print_document(snapshot: Snapshot) -> None:
    print_json(watch_facts(snapshot))


def _print_line(snapshot: Snapshot) -> None:
    click.echo(json.dumps(watch_facts(snapshot)))


def _repeat(
    reader: Reader, interval_s: float, once: bool, show: Callable[[Snapshot], None]
) -> Snapshot:
    while True:
        snapshot = reader.snapshot()
        show(snapshot)
        if once or snapshot.finished:
            return snapshot
        time.sleep(pause_s(interval_s, snapshot))


def _keep_metrics(reader: Reader, interval_s: float, once: bool) -> Snapshot:
    """Append to the pool's metrics logs until all is done, unless another process does."""
    from fsqueue.metrics.log_file import MetricsLog, metrics_path, time_use_path

    kept = MetricsLog(metrics_path(reader.pool), time_use_path(reader.pool))
    if not kept.writing:
        log.info("another process already keeps %s", metrics_path(reader.pool))
    reader.on_snapshot.append(kept.keep)
    try:
        return _repeat(reader, interval_s, once, lambda snapshot: None)
    finally:
        kept.close()

"""`fsqueue status`: a pool's progress on one screen."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    EXIT_STATUS,
    SETTINGS,
    inputs_option,
    json_option,
    plural,
    pool_argument,
    print_json,
    print_table,
)
from fsqueue.gpu.weights import short_name
from fsqueue.monitor import format
from fsqueue.monitor.counts import Queue
from fsqueue.monitor.json_documents import status_facts
from fsqueue.monitor.locate import input_claims
from fsqueue.monitor.log_lines import counted
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.time_use import sentence


@click.command("status", context_settings=SETTINGS, epilog=EXIT_STATUS)
@pool_argument
@inputs_option
@json_option
def status(pool: Pool, with_inputs: bool, as_json: bool) -> None:
    """Show a pool's progress on one screen.

    Claims are counted on disk; speed, ETA and steals are what the workers report.
    """
    snapshot = pool.snapshot()
    claims = list(input_claims(pool)) if with_inputs else []
    if as_json:
        facts = status_facts(snapshot)
        print_json(facts | {"claims": list(map(asdict, claims))} if with_inputs else facts)
    else:
        _print_status(snapshot)
        if claims:
            click.echo()
            rows = [(each.id, each.state, ", ".join(each.inputs) or "-") for each in claims]
            print_table(("claim", "state", "inputs"), rows, left=3)
    sys.exit(snapshot.exit_status)


def _print_status(snapshot: Snapshot) -> None:
    count = snapshot.count
    click.echo(f"{snapshot.pool}: {counted(snapshot)}\n")
    amounts = {
        "waiting": count.waiting,
        "running": count.running,
        "done": count.done,
        "failed": count.failed,
        **count.others,
        "planned": count.planned,
    }
    rows = [
        (k, a.claims, a.cost, format.share(a.cost, count.planned.cost)) for k, a in amounts.items()
    ]
    print_table(("state", "claims", "cost", "share"), rows)
    if snapshot.spools:
        click.echo()
        _print_spools(snapshot)
    if text := sentence(snapshot.time_use):
        click.echo(f"\n{text}")
    if count.by_priority:
        click.echo()
        for queue in count.by_priority:
            click.echo(f"priority {queue.priority}: {_queue(queue)}")
    for alert in snapshot.warnings:
        click.echo(f"\nwarning: {alert.text}")
    if count.staged.claims:
        click.echo(
            f"\n{plural(count.staged.claims, 'waiting claim')} not in a spool yet: a planner is at "
            f"work, or died. An idle worker completes its plan."
        )
    if count.failed.claims:
        click.echo(f"\nSee why: fsqueue failed {snapshot.pool}")


def _queue(queue: Queue) -> str:
    what = f"{plural(queue.claims, 'claim')} {'waits' if queue.claims == 1 else 'wait'}"
    made = format.utc_seconds(queue.planned)
    since = f", planned {format.duration(max(0.0, time.time() - made))} ago" if made else ""
    return f"{what}, such as {queue.example}{since}"


def _print_spools(snapshot: Snapshot) -> None:
    titles = "spool model state workers weight waiting left done stolen".split()
    rows = [
        (
            row.name or "others",
            short_name(row.model) or "-",
            row.state,
            row.workers,
            f"{row.weight:.2f}" if row.weight else "-",
            row.waiting.claims,
            f"{100 * row.share_left:.0f}%",
            row.done,
            format.stolen(row.stolen_in, row.stolen_out),
            format.rate(row.items_per_s),
            format.duration(row.eta_s),
        )
        for row in snapshot.spools
    ]
    print_table((*titles, f"{snapshot.unit}/s", "ETA"), rows, left=3)

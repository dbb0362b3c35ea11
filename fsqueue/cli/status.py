"""Commands that look at a pool once and change nothing: status, workers."""

from __future__ import annotations

import sys

import click

from fsqueue.cli.json_output import EXIT_STATUS, status_facts, worker_facts
from fsqueue.cli.options import SETTINGS, json_option, pool_argument, print_json, print_table
from fsqueue.gpu.weights import short_name
from fsqueue.monitor import format
from fsqueue.monitor.log_lines import counted
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.pool.settings import PoolDirectory


@click.command("status", context_settings=SETTINGS, epilog=EXIT_STATUS)
@pool_argument
@json_option
def status(pool: PoolDirectory, as_json: bool) -> None:
    """Say how far a pool is, on one screen.

    Claims are counted on disk; speed, ETA and what was stolen are the workers' own reports.
    """
    snapshot = Reader(pool).snapshot()
    if as_json:
        print_json(status_facts(snapshot))
    else:
        _print_status(snapshot)
    sys.exit(snapshot.exit_status)


def _print_status(snapshot: Snapshot) -> None:
    count = snapshot.count
    click.echo(f"{snapshot.pool}: {counted(snapshot)}\n")
    amounts = {
        "waiting": count.waiting,
        "running": count.running,
        "done": count.done,
        "failed": count.failed,
        "planned": count.planned,
    }
    rows = [
        (k, a.claims, a.cost, format.share(a.cost, count.planned.cost)) for k, a in amounts.items()
    ]
    print_table(("state", "claims", "cost", "share"), rows)
    if snapshot.spools:
        click.echo()
        _print_spools(snapshot)
    for alert in snapshot.warnings:
        click.echo(f"\nwarning: {alert.text}")
    if count.staged.claims:
        click.echo(
            f"\n{count.staged.claims:,} of those that wait are not yet in their spools: a "
            f"planner is at work, or died. An idle worker completes its plan."
        )
    if count.failed.claims:
        click.echo(f"\nSee why: fsqueue failed {snapshot.pool}")


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


# ---- workers ----


@click.command("workers", context_settings=SETTINGS)
@pool_argument
@click.option("--all", "everybody", is_flag=True, help="Also those that left or died long ago.")
@json_option
def workers(pool: PoolDirectory, everybody: bool, as_json: bool) -> None:
    """List a pool's workers: who lives, what each holds, how it fares.

    Whether a worker lives is read from its lease; the rest is its own report.
    """
    snapshot = Reader(pool).snapshot()
    if as_json:
        return print_json({"workers": [worker_facts(row) for row in snapshot.workers]})
    shown = [row for row in snapshot.workers if everybody or row.living or row.holds]
    titles = "worker spool state claim now done failed stolen ops/s".split()
    rows = [
        (
            row.id,
            row.status.spool or "-",
            row.state,
            ", ".join(row.holds) or "-",
            format.percent(None if row.progress is None else 100 * row.progress, 0),
            row.status.claims_done,
            row.status.claims_failed,
            row.status.steals_in,
            format.rate(row.status.metadata_ops_per_s if row.living else None),
            format.rate(row.items_per_s),
            format.duration(row.age_s),
        )
        for row in shown
    ]
    print_table((*titles, f"{snapshot.unit}/s", "seen"), rows, left=4)
    for row in shown:
        if row.trouble:
            click.echo(f"{row.id}: {row.trouble}")
    if hidden := len(snapshot.workers) - len(shown):
        click.echo(f"{hidden:,} more left or died and hold nothing: --all shows them.")

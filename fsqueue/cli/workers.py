"""`fsqueue workers`: list a pool's workers."""

from __future__ import annotations

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, json_option, pool_argument, print_json, print_table
from fsqueue.monitor import format
from fsqueue.monitor.json_documents import worker_facts


@click.command("workers", context_settings=SETTINGS)
@pool_argument
@click.option("--all", "all_workers", is_flag=True, help="Include those that left or died.")
@json_option
def workers(pool: Pool, all_workers: bool, as_json: bool) -> None:
    """List a pool's workers: which are alive, what each holds, how fast it is.

    Whether a worker is alive is read from its lease; the rest is its own report.
    """
    snapshot = pool.snapshot()
    if as_json:
        return print_json({"workers": [worker_facts(row) for row in snapshot.workers]})
    shown = [row for row in snapshot.workers if all_workers or row.living or row.holds]
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
        click.echo(f"{hidden:,} more left or died and hold nothing; --all shows them.")
    return None

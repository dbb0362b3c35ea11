"""`fsqueue clean`: remove what killed processes left behind."""

from __future__ import annotations

from dataclasses import asdict

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    ProgressLine,
    dry_run_option,
    json_option,
    plural,
    pool_argument,
    print_json,
    print_table,
)
from fsqueue.maintenance.cleanup import clean_pool


@click.command("clean", context_settings=SETTINGS)
@pool_argument
@click.option(
    "--older-than",
    type=Duration(),
    metavar="AGE",
    help="Also forget workers that left or died longer ago than this: status, journal and lease.",
)
@click.option(
    "--all",
    "all_workers",
    is_flag=True,
    help="Also forget all workers that left or died; fsqueue joblog and trace lose them.",
)
@dry_run_option
@json_option
def clean(
    pool: Pool, older_than: float | None, all_workers: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove what killed processes left behind: half-written files, plans that never got a number,
    checkpoints of claims that are done, orders to workers that are gone.

    Nothing that belongs to a living worker, no claim, output, lock or log is touched. Anything
    doubtful is watched for a whole lease first.
    """
    line = ProgressLine()
    removed = clean_pool(
        pool,
        older_than_s=0.0 if all_workers else older_than,
        dry_run=dry_run,
        on_wait=lambda left_s: line.show(f"watching for {left_s:.0f} s more"),
    )
    line.clear()
    size = sum(bytes_ for _, bytes_ in removed)
    if as_json:
        facts = [asdict(each) | {"bytes": bytes_} for each, bytes_ in removed]
        return print_json({"litter": facts, "bytes": size, "removed": not dry_run})
    if removed:
        rows = [(each.kind, each.whose, each.path, bytes_) for each, bytes_ in removed]
        print_table(("kind", "whose", "path", "bytes"), rows, left=3)
    verb = "would be removed" if dry_run else "removed"
    return click.echo(f"{plural(len(removed), 'leftover')} {verb}, {size:,} bytes.")

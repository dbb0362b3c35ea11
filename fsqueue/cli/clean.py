"""`fsqueue clean`: remove what killed processes left behind."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    json_option,
    plural,
    pool_argument,
    print_json,
    print_table,
)
from fsqueue.maintenance.cleanup import Cleaner, Leftover, remove
from fsqueue.pool.settings import PoolDirectory

LOOKS_PER_LEASE = 8


@click.command("clean", context_settings=SETTINGS)
@pool_argument
@click.option("--older-than", type=Duration(), metavar="AGE", help="Also forget workers that left "
              "or died longer ago than this: status, journal and lease.")  # fmt: skip
@click.option("--all", "everybody", is_flag=True, help="Also forget all workers that left or died. "
              "fsqueue joblog and trace tell nothing of them any more.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@json_option
def clean(
    pool: PoolDirectory, older_than: float | None, everybody: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove what killed processes left behind: half-written files, plans that never got a number,
    checkpoints of claims that are done, orders to workers that are gone.

    Nothing of a living worker, no claim, no output, no lock and no log is touched. What is not
    surely litter is watched for a whole lease first.
    """
    cleaner = Cleaner(pool, older_than_s=0.0 if everybody else older_than)
    removed = []
    for litter in _watch(pool, cleaner):
        size = litter.size
        if dry_run or remove(pool, litter):
            removed.append((litter, size))
    _report(removed, dry_run, as_json)


def _watch(pool: PoolDirectory, cleaner: Cleaner) -> list[Leftover]:
    """Look until all is decided, for a lease and one look more at most."""
    until = time.monotonic() + pool.lease_s * (1 + 2 / LOOKS_PER_LEASE)
    while True:
        found = cleaner.look()
        left_s = until - time.monotonic()
        if not cleaner.doubtful or left_s <= 0:
            break
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[Kwatching for {left_s:.0f} s more", nl=False, err=True)
        time.sleep(pool.lease_s / LOOKS_PER_LEASE)
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    return found


def _report(removed: list[tuple[Leftover, int]], dry_run: bool, as_json: bool) -> None:
    size = sum(size for _, size in removed)
    if as_json:
        facts = [asdict(each) | {"bytes": bytes_} for each, bytes_ in removed]
        return print_json({"litter": facts, "bytes": size, "removed": not dry_run})
    if removed:
        rows = [(each.kind, each.whose, each.path, bytes_) for each, bytes_ in removed]
        print_table(("kind", "whose", "path", "bytes"), rows, left=3)
    verb = "would be removed" if dry_run else "removed"
    click.echo(f"{plural(len(removed), 'piece')} of litter {verb}, {size:,} bytes.")

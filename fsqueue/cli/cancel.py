"""`fsqueue cancel`: take claims out of the pool."""

from __future__ import annotations

import click

from fsqueue.api import open_pool
from fsqueue.cli.options import (
    SETTINGS,
    dry_run_option,
    json_option,
    note,
    plural,
    print_json,
    split_pool,
    trust_option,
)
from fsqueue.errors import UsageError


@click.command("cancel", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL ID...")
@trust_option
@click.option("--all", "everything", is_flag=True, help="Cancel everything that waits or runs.")
@dry_run_option
@json_option
def cancel(words: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool) -> None:
    """Take claims out of the pool. They end in failed/, and `fsqueue retry` brings them back.

    A running claim is given up by its worker at its next beat.
    """
    root, ids = split_pool(words)
    if bool(ids) == everything:
        raise UsageError("name the claims to cancel by ID, or use --all. See: fsqueue status POOL")
    pool = open_pool(root)
    done = pool.cancel_all(dry_run=dry_run) if everything else pool.cancel(ids, dry_run=dry_run)
    for id in done.taken:
        note(f"{id} was taken by a worker first; cancel it again.")
    rows = [{"id": each.id, "was": each.was.name.lower()} for each in done.cancelled]
    if as_json:
        return print_json({"claims": rows})
    for row in rows:
        click.echo(f"{row['id']}  {row['was']}")
    verb = "would be cancelled" if dry_run else "cancelled"
    return click.echo(f"{plural(len(rows), 'claim')} {verb}.")

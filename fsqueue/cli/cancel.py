"""`fsqueue cancel`: take claims out of the pool."""

from __future__ import annotations

import click

from fsqueue.api import open_pool
from fsqueue.cli.options import (
    SETTINGS,
    dry_run_option,
    json_option,
    matching_options,
    note,
    plural,
    print_json,
    split_pool,
    trust_option,
)
from fsqueue.errors import UsageError
from fsqueue.history.select import Matching


@click.command("cancel", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL ID...")
@trust_option
@click.option("--all", "everything", is_flag=True, help="Cancel everything that waits or runs.")
@matching_options
@dry_run_option
@json_option
def cancel(
    words: tuple[str, ...],
    everything: bool,
    error: str,
    exit_status: int | None,
    kind: str,
    inputs: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take claims out of the pool. They end in failed/, and `fsqueue retry` brings them back.

    A running claim is given up by its worker at its next beat. --error and --exit are those of
    earlier attempts.

    \b
    Example:
      fsqueue cancel pool/ --input '/data/run7/*' --dry-run
    """
    root, ids = split_pool(words)
    matching = Matching(error, exit_status, kind, inputs)
    if bool(ids or matching) == everything:
        raise UsageError(
            "name the claims to cancel by ID, choose them (--input, --kind, --error, --exit), or "
            "use --all. See: fsqueue status POOL"
        )
    pool = open_pool(root)
    if everything:
        done = pool.cancel_all(dry_run=dry_run)
    else:
        done = pool.cancel(ids, matching=matching, dry_run=dry_run)
    for id in done.taken:
        note(f"{id} was taken by a worker first; cancel it again.")
    rows = [{"id": each.id, "was": each.was.name.lower()} for each in done.cancelled]
    if as_json:
        return print_json({"claims": rows})
    for row in rows:
        click.echo(f"{row['id']}  {row['was']}")
    verb = "would be cancelled" if dry_run else "cancelled"
    return click.echo(f"{plural(len(rows), 'claim')} {verb}.")

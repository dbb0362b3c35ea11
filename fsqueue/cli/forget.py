"""`fsqueue forget`: give failed claims up for good."""

from __future__ import annotations

import click

from fsqueue.api import open_pool
from fsqueue.cli.options import (
    SETTINGS,
    dry_run_option,
    json_option,
    plural,
    print_json,
    split_pool,
    trust_option,
)
from fsqueue.errors import UsageError


@click.command("forget", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL ID...")
@trust_option
@click.option("--all", "everything", is_flag=True, help="Forget every claim that failed.")
@dry_run_option
@json_option
def forget(words: tuple[str, ...], everything: bool, dry_run: bool, as_json: bool) -> None:
    """Give failed claims up for good, so that they no longer count as failed.

    Their errors are kept, `fsqueue status` counts them as forgotten, and `fsqueue embed merge`
    leaves their sequences out. `fsqueue retry` does not bring them back.
    """
    root, ids = split_pool(words)
    if bool(ids) == everything:
        raise UsageError("name the claims to forget by ID, or use --all. See: fsqueue failed POOL")
    pool = open_pool(root)
    if everything:
        ids = [claim.name.id for claim in pool.failed()]
    forgotten = pool.forget(ids, dry_run=dry_run) if ids else []
    if as_json:
        return print_json({"claims": forgotten})
    for id in forgotten:
        click.echo(id)
    verb = "would be forgotten" if dry_run else "forgotten"
    return click.echo(f"{plural(len(forgotten), 'claim')} {verb}.")

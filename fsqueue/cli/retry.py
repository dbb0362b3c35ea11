"""`fsqueue retry`: put failed claims back."""

from __future__ import annotations

from dataclasses import asdict

import click

from fsqueue.api import open_pool
from fsqueue.cli.options import (
    SETTINGS,
    dry_run_option,
    json_option,
    matching_options,
    plural,
    print_json,
    split_pool,
    trust_option,
)
from fsqueue.history.select import Matching


@click.command("retry", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL [ID]...")
@trust_option
@matching_options
@dry_run_option
@json_option
def retry(
    words: tuple[str, ...],
    error: str,
    exit_status: int | None,
    kind: str,
    inputs: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put failed claims back into their spools: all of them, those named by ID, or some.

    \b
    Example:
      fsqueue retry pool/ --error "out of memory" --dry-run
    """
    root, ids = split_pool(words)
    matching = Matching(error, exit_status, kind, inputs)
    retried = open_pool(root).retry(ids, matching=matching, dry_run=dry_run)
    if as_json:
        return print_json({"claims": [asdict(each) for each in retried]})
    for each in retried:
        click.echo(f"{each.id}  {each.spool}")
    verb = "would be put back" if dry_run else "put back"
    return click.echo(f"{plural(len(retried), 'claim')} {verb}.")

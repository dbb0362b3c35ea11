"""`fsqueue embed store`: show, verify and compact a store of vectors."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from embed.cli.store_arguments import store_argument
from fsqueue import UsageError
from fsqueue.cli.options import SETTINGS, Duration, json_option, plural, print_json, print_table


@click.group("store", context_settings=SETTINGS)
def store_group() -> None:
    """Show, verify or compact a store of vectors.

    A store is filled by claims: fsqueue plan embed POOL INPUT... --model M --store DIR
    """


@store_group.command("info", context_settings=SETTINGS)
@store_argument
@json_option
def info_command(root: str, as_json: bool) -> None:
    """Show the contents of STORE."""
    from embed.store.info import info
    from embed.store.spaces import list_spaces

    found = [info(collection, view) for collection, view in list_spaces(root)]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        click.echo(f"{root}: the store is empty.")
        return
    header = "collection space width stored vectors duplicates shards MiB superseded".split()
    rows = [
        (one.collection, one.space, one.width, one.stored, one.vectors, one.duplicates,
         one.shards, f"{one.bytes / 2**20:.1f}", one.superseded)
        for one in found
    ]  # fmt: skip
    print_table(header, rows, left=2)


@store_group.command("verify", context_settings=SETTINGS)
@store_argument
def verify_command(root: str) -> None:
    """Read all of STORE, and report damage (with exit status 1)."""
    from embed.store.spaces import list_spaces
    from embed.store.verify import verify

    found = list(list_spaces(root))
    problems = [line for _, view in found for line in verify(view)]
    for line in problems:
        click.echo(line, err=True)
    if problems:
        sys.exit(1)
    shards = sum(len(view.shards) for _, view in found)
    click.echo(f"{root}: {plural(shards, 'shard')} in {plural(len(found), 'space')}, all intact.")


@store_group.command("compact", context_settings=SETTINGS)
@store_argument
@click.option(
    "--grace",
    type=Duration(),
    default=600.0,
    show_default=True,
    help="Keep superseded shards this long.",
)
@json_option
def compact_command(root: str, grace: float, as_json: bool) -> None:
    """Merge many small shards into few large ones, here and now.

    Readers and writers continue meanwhile. The same as a claim for storage workers: fsqueue plan
    compact POOL STORE, fsqueue work POOL --role storage.
    """
    from embed.store.compact import compact
    from embed.store.spaces import list_spaces

    if grace < 0:
        raise UsageError("--grace must be 0 or more.")
    done = {
        f"{name}/{view.space.name}": compact(view, grace_s=grace)
        for name, view in list_spaces(root)
    }
    if as_json:
        print_json({name: asdict(one) for name, one in done.items()})
        return
    for name, one in done.items():
        click.echo(
            f"{name}: {plural(one.merged, 'shard')} merged into {one.made}; "
            f"{plural(one.duplicates, 'duplicate')} dropped; {plural(one.removed, 'file')} "
            f"removed, {one.waiting} kept until they are {grace:g} s old."
        )

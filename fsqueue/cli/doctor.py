"""`fsqueue doctor`: find out whether a directory can hold a pool, and how to run one there."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

import click

from fsqueue.api import open_pool
from fsqueue.cli.options import SETTINGS, Duration, json_option, print_json
from fsqueue.errors import ExitStatus
from fsqueue.maintenance.doctor import Finding, examine
from fsqueue.maintenance.moved import unseen_inputs
from fsqueue.storage.untrusted import printable

EPILOG = """\b
Examples:
  fsqueue doctor /shared                 what one host can find out
  fsqueue doctor /shared --peer          on two hosts: they meet in the directory

Exit status: 0 the directory is suitable (notes are about speed), 4 it is not.
"""


@click.command("doctor", context_settings=SETTINGS, epilog=EPILOG)
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--peer", is_flag=True, help="Also meet another host that runs the same command.")
@click.option(
    "--wait",
    type=Duration(),
    default=300.0,
    show_default=True,
    help="How long to wait for the other host.",
)
@click.option(
    "--patience",
    type=Duration(),
    default=35.0,
    show_default=True,
    help="How long to wait for changes that stat shows late (30 s and more on NFS).",
)
@json_option
def doctor(directory: str, peer: bool, wait: float, patience: float, as_json: bool) -> None:
    """Test whether the file system of DIR does what fsqueue assumes.

    One line per test: ok, a note about something a pool can do without, or BAD. Everything is
    removed afterwards. With --peer, run it on two hosts at once.
    """

    def show(finding: Finding) -> None:
        text = printable(finding.text, 4000)
        click.echo(f"{finding.level.value:<5} {finding.name:<18} {text}")

    def show_waiting() -> None:
        click.echo("waiting for the other host: fsqueue doctor DIR --peer, there", err=True)

    verdict = examine(
        directory,
        peer=peer,
        wait_s=wait,
        patience_s=patience,
        on_finding=None if as_json else show,
        on_waiting=None if as_json else show_waiting,
    )
    if as_json:
        print_json(
            {
                "directory": verdict.directory,
                "fit": verdict.suitable,
                "other_host": verdict.other_host,
                "echo_s": verdict.echo_s,
                "lease_s": verdict.lease_s,
                "steal_interval_s": verdict.steal_interval_s,
                "findings": [asdict(finding) for finding in verdict.findings],
            }
        )
    elif verdict.suitable:
        click.echo(
            f"This directory is suitable for a pool. Recommended: plan --lease "
            f"{verdict.lease_s:g}s, work --steal-interval {verdict.steal_interval_s:g}s"
            f"{'' if peer else '; two hosts find out more: --peer'}"
        )
    else:
        click.echo("This directory is not suitable for a pool: see BAD above. Use another one.")
    if not as_json and os.path.lexists(os.path.join(directory, "pool.json")):
        _show_unseen(directory)
    sys.exit(ExitStatus.DONE if verdict.suitable else ExitStatus.NOT_SUPPORTED)


def _show_unseen(directory: str) -> None:
    """Say which inputs of a pool are not where its plans say, and what a worker here needs."""
    for unseen in unseen_inputs(open_pool(directory)):
        path, nearest = printable(unseen.path, 400), printable(unseen.nearest, 400)
        click.echo(
            f"note  inputs             {path} of plan {unseen.plan} is not on this host; there is "
            f"{nearest}. If its directory is elsewhere here: fsqueue work --path-map OLD=NEW"
        )

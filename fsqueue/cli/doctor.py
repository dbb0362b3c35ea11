"""`fsqueue doctor`: find out whether a directory can hold a pool, and how to run one there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict

import click

from fsqueue.cli.options import SETTINGS, Duration, json_option, print_json
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.maintenance.doctor.one_host import Finding, fit, thorough
from fsqueue.maintenance.doctor.two_hosts import TwoHostTrial, recommend
from fsqueue.pool.untrusted import printable
from fsqueue.storage.mounts import mount_of

EPILOG = """\b
Examples:
  fsqueue doctor /shared                 what this host alone can find out
  fsqueue doctor /shared --peer          on two hosts: they meet in the directory

Exit status: 0 a pool is right here (notes are about speed), 4 it would not be.
"""


@click.command("doctor", context_settings=SETTINGS, epilog=EPILOG)
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--peer", is_flag=True, help="Also meet another host that runs the same command.")
@click.option(
    "--wait",
    type=Duration(),
    default=300.0,
    show_default=True,
    help="How long to wait for the other host to come.",
)
@click.option(
    "--patience",
    type=Duration(),
    default=35.0,
    show_default=True,
    help="How long to watch for what stat shows late (30 s and more on NFS).",
)
@json_option
def doctor(directory: str, peer: bool, wait: float, patience: float, as_json: bool) -> None:
    """Try out in DIR what fsqueue assumes of a file system.

    One line for each thing tried: ok, a note on what a pool does without, or BAD. Everything is
    removed again. With --peer, run it on two hosts at once.
    """
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory. Name one that all workers will see.")
    directory = os.path.abspath(directory)
    consultation = TwoHostTrial(directory, wait, patience)
    found = _show(thorough(directory), quiet=as_json)
    if peer:
        if not as_json:
            click.echo("waiting for the other host: fsqueue doctor DIR --peer, there", err=True)
        found += _show(consultation.run(), quiet=as_json)
    silence_s = mount_of(directory).silence_s
    lease_s, interval_s = recommend(consultation.echo_s, silence_s)
    well = fit(found)
    if as_json:
        print_json(
            {
                "directory": directory,
                "fit": well,
                "other_host": consultation.other or None,
                "echo_s": round(consultation.echo_s, 3) if peer else None,
                "lease_s": lease_s,
                "steal_interval_s": interval_s,
                "findings": [asdict(finding) for finding in found],
            }
        )
    elif well:
        click.echo(
            f"A pool is right here. Recommended: plan --lease {lease_s:g}s, work --steal-interval "
            f"{interval_s:g}s{'' if peer else '; two hosts can tell more: --peer'}"
        )
    else:
        click.echo("A pool would not be right here: see BAD above. Use another file system.")
    sys.exit(ExitStatus.DONE if well else ExitStatus.NOT_SUPPORTED)


def _show(findings: Iterable[Finding], *, quiet: bool) -> list[Finding]:
    """Print each finding as it is made; return them all."""
    kept = []
    for finding in findings:
        kept.append(finding)
        if not quiet:
            text = printable(finding.text, 4000)
            click.echo(f"{finding.level.value:<5} {finding.name:<18} {text}")
    return kept

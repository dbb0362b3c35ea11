"""`fsqueue check`: verify a pool's invariants on disk."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    dry_run_option,
    json_option,
    plural,
    pool_argument,
    print_json,
)
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.storage.untrusted import printable

EPILOG = """\b
Examples:
  fsqueue check pool/
  fsqueue check pool/ --deep            after a disk or a mount had trouble
  fsqueue check pool/ --repair --dry-run
"""


@click.command("check", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option("--deep", is_flag=True, help="Read every output, and compare its checksum.")
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what can be repaired without doubt; files in the way are moved to set-aside/.",
)
@dry_run_option
@json_option
def check(pool: Pool, deep: bool, repair: bool, dry_run: bool, as_json: bool) -> None:
    """Verify a pool's invariants on disk; change nothing, unless asked to.

    Every planned claim must be in exactly one place, every waiting or running claim whole, and
    every done claim have its output, of the size that was published. Exit status 0 if so, 1 if
    not (after --repair: if not even then).

    --repair plans a claim again whose file is gone, keeps one of several copies of a claim, and
    lets a claim run again whose output is missing or damaged.
    """
    from fsqueue.maintenance.audit import audit_pool
    from fsqueue.maintenance.restore import Repair, check_and_repair

    if dry_run and not repair:
        raise UsageError("--dry-run is for --repair; without it, check changes nothing.")
    repaired = Repair()
    if repair:
        repaired, report = check_and_repair(pool, deep=deep, dry_run=dry_run)
    else:
        report = audit_pool(pool, deep=deep)
    if as_json:
        facts = asdict(report) | {"clean": not report.problems}
        print_json(facts | {"repaired": repaired.done, "left": repaired.left})
    else:
        for text in repaired.done:
            click.echo(f"repair: {printable(text, 4000)}")
        for text in repaired.left:
            click.echo(f"left: {printable(text, 4000)}")
        for problem in report.problems:
            click.echo(printable(problem, 4000))
        for text in report.notes:
            click.echo(f"note: {printable(text, 4000)}")
        counts = ", ".join(f"{count:,} {place}" for place, count in report.counts.items())
        verdict = plural(len(report.problems), "problem") if report.problems else "clean"
        planned = plural(report.planned, "claim")
        click.echo(f"{pool.root}: {verdict}. {planned} planned: {counts or 'none'}.")
        if report.problems and not repair:
            click.echo(f"What can be repaired: fsqueue check {pool.root} --repair --dry-run")
    sys.exit(ExitStatus.ERROR if report.problems else ExitStatus.DONE)

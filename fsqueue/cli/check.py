"""`fsqueue check`: verify a pool's invariants on disk."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, json_option, plural, pool_argument, print_json
from fsqueue.errors import ExitStatus
from fsqueue.pool.untrusted import printable


@click.command("check", context_settings=SETTINGS)
@pool_argument
@json_option
def check(pool: Pool, as_json: bool) -> None:
    """Verify a pool's invariants on disk; change nothing.

    Every planned claim must be in exactly one place, every waiting or running claim whole, and
    every done claim have its output. Exit status 0 if so, 1 if not.
    """
    from fsqueue.maintenance.audit import audit_pool

    report = audit_pool(pool)
    if as_json:
        print_json(asdict(report) | {"clean": not report.problems})
    else:
        for problem in report.problems:
            click.echo(printable(problem, 4000))
        for note in report.notes:
            click.echo(f"note: {printable(note, 4000)}")
        counts = ", ".join(f"{count:,} {place}" for place, count in report.counts.items())
        verdict = plural(len(report.problems), "problem") if report.problems else "clean"
        planned = plural(report.planned, "claim")
        click.echo(f"{pool.root}: {verdict}. {planned} planned: {counts or 'none'}.")
    sys.exit(ExitStatus.ERROR if report.problems else ExitStatus.DONE)

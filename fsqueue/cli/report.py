"""`fsqueue report`: how a pool went, as one HTML page."""

from __future__ import annotations

import click

from fsqueue.api import Pool
from fsqueue.cli.documents import REPORT_MARKS, Destination, write_lines
from fsqueue.cli.options import SETTINGS, force_option, output_option, pool_argument


@click.command("report", context_settings=SETTINGS)
@pool_argument
@output_option
@force_option
def report(pool: Pool, output: str | None, force: bool) -> None:
    """Write how a pool went, or is going, as one HTML page.

    It shows what is done, which worker did what when, steals, and failures with their last lines.
    The page loads nothing from elsewhere, so it can be sent to anyone.
    """
    from fsqueue.history.report import page

    write_lines(page(pool), pool, Destination(output, REPORT_MARKS, force))

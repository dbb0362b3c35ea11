"""`fsqueue report`: how a pool went, or goes, as one HTML page."""

from __future__ import annotations

import time

import click

from fsqueue.api import Pool
from fsqueue.cli.documents import REPORT_MARKS, Destination, write_lines
from fsqueue.cli.options import SETTINGS, Duration, force_option, output_option, pool_argument
from fsqueue.errors import UsageError

EVERY_MIN_S = 1.0
EPILOG = """\b
Example:
  fsqueue report pool/ -o public_html/pool.html --every 30s
"""


@click.command("report", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@output_option
@click.option(
    "--every",
    type=Duration(),
    help="Write the page again so often, such as 30s, until all is done; a browser that shows it "
    "loads it again.",
)
@force_option
def report(pool: Pool, output: str | None, every: float | None, force: bool) -> None:
    """Write how a pool went, or is going, as one HTML page.

    It shows what is done, which worker did what when, speed and GPU use over time, steals, and
    failures with their last lines. The page loads nothing from elsewhere, so it can be sent to
    anyone, and needs no server: put it where a web server or a browser finds it.
    """
    from fsqueue.history.report import page
    from fsqueue.monitor.snapshot import Reader

    if every is not None and output is None:
        raise UsageError("--every needs a file that is written again and again: -o report.html")
    if every is not None and every < EVERY_MIN_S:
        raise UsageError(f"--every {every:g}s: must be at least {EVERY_MIN_S:g}s.")
    destination = Destination(output, REPORT_MARKS, force)
    reader = Reader(pool)
    while True:
        begun = time.monotonic()
        snapshot = reader.snapshot()
        write_lines(page(pool, snapshot=snapshot, every_s=every), pool, destination)
        if every is None or snapshot.finished:
            return
        took_s = time.monotonic() - begun
        time.sleep(max(every - took_s, took_s))

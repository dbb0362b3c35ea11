"""`fsqueue trace`: what happened, as a Chrome trace."""

from __future__ import annotations

import click

from fsqueue.api import Pool
from fsqueue.cli.documents import TRACE_MARKS, Destination, json_list, write_lines
from fsqueue.cli.options import SETTINGS, force_option, output_option, pool_argument


@click.command("trace", context_settings=SETTINGS)
@pool_argument
@output_option
@force_option
def trace(pool: Pool, output: str | None, force: bool) -> None:
    """Write every attempt as a trace, one lane per worker, for ui.perfetto.dev.

    Steals are arrows from the spool that lost a claim. The file stays on your machine: Perfetto
    reads it in the browser. Chrome's own chrome://tracing opens it, too.
    """
    from fsqueue.history.attempts import attempts
    from fsqueue.history.trace import records

    write_lines(
        json_list("traceEvents", records(attempts(pool))),
        pool,
        Destination(output, TRACE_MARKS, force),
    )

"""`fsqueue services`: living workers by capability."""

from __future__ import annotations

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, json_option, pool_argument, print_json, print_table


@click.command("services", context_settings=SETTINGS)
@pool_argument
@json_option
def services(pool: Pool, as_json: bool) -> None:
    """List workers by capability: the handlers that each has installed, and every --capability.

    Workers that reported they cannot run a handler's claims, or whose last one failed, are listed,
    too.
    """
    from fsqueue.scheduling.peers import workers_by_capability

    offers = workers_by_capability(pool)
    if as_json:
        rows = [
            {"name": name, "worker_count": len(workers), "workers": workers}
            for name, workers in offers.items()
        ]
        return print_json({"services": rows})
    return print_table(
        ("service", "workers", "which"),
        [(name, str(len(workers)), " ".join(workers)) for name, workers in offers.items()],
        left=3,
    )

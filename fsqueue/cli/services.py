"""`fsqueue services`: which services the living workers offer."""

from __future__ import annotations

import click

from fsqueue.cli.options import SETTINGS, json_option, pool_argument, print_json, print_table
from fsqueue.pool.settings import PoolDirectory
from fsqueue.pool.untrusted import printable


@click.command("services", context_settings=SETTINGS)
@pool_argument
@json_option
def services(pool: PoolDirectory, as_json: bool) -> None:
    """Say which workers offer what: every handler that one has, and every --capability.

    Workers that told they cannot run a handler's claims, or whose last one failed, still count.
    """
    offers: dict[str, list[str]] = {}
    for worker, capabilities in sorted(_capabilities(pool).items()):
        for capability in capabilities:
            offers.setdefault(capability, []).append(worker)
    rows = [
        {"name": name, "worker_count": len(workers), "workers": workers}
        for name, workers in sorted(offers.items())
    ]
    if as_json:
        print_json({"services": rows})
        return
    print_table(
        ("service", "workers", "which"),
        [(name, str(len(workers)), " ".join(workers)) for name, workers in sorted(offers.items())],
        left=3,
    )


def _capabilities(pool: PoolDirectory) -> dict[str, list[str]]:
    from fsqueue.pool.leases import lease_names
    from fsqueue.pool.status import read_status

    living = {name.worker for name in lease_names(pool) if name.living}
    statuses = {worker: read_status(pool, worker) for worker in living}
    return {
        worker: [printable(word, 60) for word in status.capabilities[:100]]
        for worker, status in statuses.items()
        if status is not None
    }

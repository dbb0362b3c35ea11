"""`fsqueue recover`: put back what dead workers hold."""

from __future__ import annotations

import click

from fsqueue.api import Pool
from fsqueue.cli.options import (
    SETTINGS,
    ProgressLine,
    json_option,
    plural,
    pool_argument,
    print_json,
)


@click.command("recover", context_settings=SETTINGS)
@pool_argument
@json_option
def recover(pool: Pool, as_json: bool) -> None:
    """Put back what dead workers hold, now. Idle workers do this by themselves.

    A worker of this host whose process is gone is dead at once; any other is dead when its beat has
    not changed for a whole lease, which this command waits for.
    """
    line = ProgressLine()
    recovered = pool.recover(
        on_wait=lambda workers, left_s: line.show(
            f"watching {plural(workers, 'worker')} for {left_s:.0f} s more"
        )
    )
    line.clear()
    rows = [{"id": r.name.id, "of": r.name.owner, "failed": r.failed} for r in recovered]
    if as_json:
        return print_json({"claims": rows})
    for each in recovered:
        became = "  failed: no attempt is left" if each.failed else ""
        click.echo(f"{each.name.id}  from {each.name.owner}{became}")
    return click.echo(f"{plural(len(rows), 'claim')} recovered.")

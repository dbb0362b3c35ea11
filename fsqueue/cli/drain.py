"""`fsqueue drain`: order workers to leave."""

from __future__ import annotations

import click

from fsqueue.api import open_pool
from fsqueue.cli.options import SETTINGS, split_pool, trust_option
from fsqueue.pool.layout import Order


@click.command("drain", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="POOL [WORKER]...")
@trust_option
@click.option("--now", is_flag=True, help="Put the current claim back instead of finishing it.")
@click.option("--pause", is_flag=True, help="Take nothing more, but stay.")
@click.option("--undo", is_flag=True, help="Withdraw the order.")
def drain(words: tuple[str, ...], now: bool, pause: bool, undo: bool) -> None:
    """Order workers to finish their claim and leave: all of them, or those named.

    The order is a file in control/; while it is there, new workers leave at once. Workers, busy or
    idle, read it with every beat of their lease: within 7.5 s by default.
    """
    root, workers = split_pool(words)
    pool = open_pool(root)
    if undo:
        pool.undo_drain(workers)
        click.echo("Order withdrawn. Workers that have left do not come back by themselves.")
        return
    order = Order.PAUSE if pause else Order.STOP if now else Order.DRAIN
    pool.drain(workers, order=order)
    click.echo(
        f"Ordered {', '.join(workers) or 'every worker'} to {order.value}. "
        f"To withdraw: fsqueue drain --undo"
    )

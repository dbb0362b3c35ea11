"""What several commands share: the POOL argument, durations, tables, JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import click

from fsqueue.errors import UsageError
from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.storage import permissions

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS: Final = {
    "auto_envvar_prefix": "FSQUEUE",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
DURATION_MAX_S: Final = 1e9
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def pool_argument(function: F) -> F:
    """Add the POOL argument, which FSQUEUE_POOL may stand in for, and --trust-group."""
    return trust_option(click.argument("pool", envvar="FSQUEUE_POOL", callback=_open)(function))


def trust_option(function: F) -> F:
    """Add --trust-group."""
    return click.option("--trust-group", cls=TrustGroup)(function)


class TrustGroup(click.Option):
    """--trust-group, which is heard before any pool is opened."""

    def __init__(self, names: Sequence[str] = ("--trust-group",), **how: Any) -> None:
        super().__init__(
            names,
            is_flag=True,
            is_eager=True,
            expose_value=False,
            envvar=permissions.TRUST_GROUP_VARIABLE,
            callback=_tell,
            help="Take work from all members of the group of the pool's directory.",
            **how,
        )


def _tell(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Tell this process, and by its environment those that it starts."""
    if value:
        os.environ[permissions.TRUST_GROUP_VARIABLE] = "1"


def _open(ctx: click.Context, parameter: click.Parameter, value: str) -> PoolDirectory | None:
    return None if ctx.resilient_parsing else open_pool(value)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def output_option(function: F) -> F:
    """Add -o, for what else goes to stdout."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False),
        help="Write it there, whole; without it, to stdout.",
    )(function)


def stealing_options(function: F) -> F:
    """Add what `work` and `run` both say of stealing."""
    interval = click.option(
        "--steal-interval",
        type=Duration(),
        default=3.0,
        show_default=True,
        help="Work stealing check interval in seconds.",
    )
    stealing = click.option(
        "--work-stealing/--no-work-stealing",
        default=True,
        help="Enable work stealing for GPU load balancing. Default: on.",
    )
    return stealing(interval(function))


def split_pool(words: Sequence[str]) -> tuple[str, list[str]]:
    """Tell POOL from what follows it, where FSQUEUE_POOL may stand in for it.

    The first word is the pool if it is one, or if FSQUEUE_POOL is not set.
    """
    preset = os.environ.get("FSQUEUE_POOL")
    if preset and not (words and os.path.lexists(os.path.join(words[0], "pool.json"))):
        return preset, list(words)
    if not words:
        raise UsageError("no POOL was given, and FSQUEUE_POOL is not set. See --help.")
    return words[0], list(words[1:])


class TrailingCommand(click.Command):
    """A command whose words after the first `--` are kept apart, as they were typed.

    They are in `ctx.meta["trailing"]`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["trailing"] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


class Duration(click.ParamType[float]):
    """Seconds, or a humane duration: 90, 45s, 10m, 1h30m, 2d."""

    name = "duration"

    def convert(
        self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
        seconds = -1.0
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = math.fsum(float(number) * _UNITS[unit] for number, unit in parts)
        elif re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        if 0 <= seconds <= DURATION_MAX_S:
            return seconds
        self.fail(f"{value!r} is not a duration; write 90, 45s, 10m or 1h30m.", parameter, ctx)


def plural(count: int, noun: str) -> str:
    """Return "1 claim", "2 claims"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> None:
    """Print aligned columns; the first `left` are text, the others numbers."""
    table = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))

"""What several commands share: the POOL argument, durations, tables, JSON, exit statuses."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, TypeVar

import click

from fsqueue.api import Pool, open_pool
from fsqueue.errors import UsageError
from fsqueue.monitor.format import plural as plural
from fsqueue.storage import permissions

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS: Final = {
    "auto_envvar_prefix": "FSQUEUE",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
EXIT_STATUS: Final = """\b
Exit status: 0 everything planned is done (or nothing was planned), 1 claims are
missing, 3 nothing is left but some claims failed, 5 work remains.
"""
DURATION_MAX_S: Final = 1e9
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def pool_argument(function: F) -> F:
    """Add the POOL argument, for which FSQUEUE_POOL can stand in, and --trust-group."""
    return trust_option(click.argument("pool", envvar="FSQUEUE_POOL", callback=_open)(function))


def trust_option(function: F) -> F:
    """Add --trust-group."""
    return click.option("--trust-group", cls=TrustGroup)(function)


class TrustGroup(click.Option):
    """--trust-group, which is evaluated before any pool is opened."""

    def __init__(self, names: Sequence[str] = ("--trust-group",), **how: Any) -> None:
        super().__init__(
            names,
            is_flag=True,
            is_eager=True,
            expose_value=False,
            envvar=permissions.TRUST_GROUP_VARIABLE,
            callback=_trust_group,
            help="Trust all members of the group of the pool's directory.",
            **how,
        )


def _trust_group(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Trust the group in this process and, through the environment, in those that it starts."""
    if value:
        os.environ[permissions.TRUST_GROUP_VARIABLE] = "1"


def _open(ctx: click.Context, parameter: click.Parameter, value: str) -> Pool | None:
    return None if ctx.resilient_parsing else open_pool(value)


def json_option(function: F) -> F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def dry_run_option(function: F) -> F:
    """Add --dry-run."""
    return click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")(
        function
    )


def output_option(function: F) -> F:
    """Add -o, for what otherwise goes to stdout."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False),
        help="Write to this file, whole or not at all. Default: stdout.",
    )(function)


def force_option(function: F) -> F:
    """Add --force."""
    return click.option(
        "--force",
        is_flag=True,
        help="Replace another result of fsqueue. Inputs and files of others are never replaced.",
    )(function)


def quiet_option(function: F) -> F:
    """Add --quiet."""
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        help="Show no progress: print warnings, and the totals at the end.",
    )(function)


def inputs_option(function: F) -> F:
    """Add --inputs."""
    return click.option(
        "--inputs",
        "with_inputs",
        is_flag=True,
        help="Also show what each claim reads; every claim of the pool is opened for that.",
    )(function)


def matching_options(function: F) -> F:
    """Add --error, --exit, --kind and --input, which choose claims; see `matching_of`."""
    for option in (
        click.option(
            "--input",
            "inputs",
            default="",
            metavar="GLOB",
            help="Only claims of inputs whose path or name matches, such as '*.fa'.",
        ),
        click.option("--kind", default="", help="Only claims of this kind."),
        click.option(
            "--exit",
            "exit_status",
            type=int,
            metavar="N",
            help="Only claims whose program ended with this exit status; 128 more than a signal.",
        ),
        click.option(
            "--error",
            default="",
            metavar="TEXT",
            help="Only claims whose last error, or its output, has this text; case does not count.",
        ),
    ):
        function = option(function)
    return function


def stealing_options(function: F) -> F:
    """Add the options of `work` and `run` that control stealing."""
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
    """Split off POOL from the words that follow it, where FSQUEUE_POOL may stand in for it.

    The first word is the pool if it is one, or if FSQUEUE_POOL is not set.
    """
    preset = os.environ.get("FSQUEUE_POOL")
    if preset and not (words and os.path.lexists(os.path.join(words[0], "pool.json"))):
        return preset, list(words)
    if not words:
        raise UsageError("POOL is missing, and FSQUEUE_POOL is not set. See --help.")
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
    """Seconds, a duration with units (90, 45s, 10m, 1h30m, 2d), or SLURM's form: 04:00:00, 1-0."""

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
        elif re.search("[:-]", text):
            from fsqueue.slurm.scripts import parse_limit

            seconds = float(-1 if (limit := parse_limit(text)) is None else limit)
        if 0 <= seconds <= DURATION_MAX_S:
            return seconds
        self.fail(
            f"{value!r} is not a duration; write 90, 45s, 10m, 1h30m or 1:30:00.", parameter, ctx
        )


class DurationOrAuto(Duration):
    """A duration, or the word auto."""

    def convert(  # type: ignore[override]
        self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None
    ) -> float | Literal["auto"]:
        """Return seconds, or "auto"."""
        return "auto" if str(value).lower() == "auto" else super().convert(value, parameter, ctx)


# ---- printing ----


def note(text: str) -> None:
    """Print a line on stderr, with the program's name before it."""
    click.echo(f"fsqueue: {text}", err=True)


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


class ProgressLine:
    """A line on stderr that is overwritten by the next one; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line, cut to the terminal's width."""
        if self.live:
            width = max(20, self._width() - 1)
            click.echo(f"\r\x1b[K{text[:width]}", nl=False, err=True)

    def clear(self) -> None:
        """Remove the line."""
        if self.live:
            click.echo("\r\x1b[K", nl=False, err=True)

    @staticmethod
    def _width() -> int:
        try:
            return os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            return 80

"""`fsqueue embed file`: embed one file without a pool."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from embed.options import OPTIONS
from fsqueue import Option
from fsqueue.cli.options import SETTINGS, force_option, plural


def _planning_options(command: Any) -> Any:
    """Add the options of `fsqueue plan embed`, in their order, except the one about checkpoints."""
    for option in reversed(OPTIONS):
        if option.name != "checkpoint_seconds":
            flag = "--" + option.name.replace("_", "-")
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if option.switch or option.default is False else flag,
                type=click.Choice(option.choices) if option.choices else _type(option),
                default=option.default,
                required=option.required,
                show_default=option.default is not None,
                help=option.help,
            )(command)
    return command


def _type(option: Option) -> type:
    if option.switch:
        return bool
    return str if option.default is None else type(option.default)


@click.command("file", context_settings=SETTINGS)
@click.argument("path", metavar="FILE", type=click.Path())
@click.option("-o", "--out", help="Output file. Default: FILE with the format's suffix.")
@_planning_options
@force_option
def file_command(path: str, out: str | None, force: bool, **options: Any) -> None:
    """Embed one file here and now, without a pool.

    FILE is FASTA, or with --text a document.
    """
    # The options are those of OPTIONS, by name, and are passed on as the handler's options.
    from embed.outputs.formats import choose_format
    from embed.single_file import embed_file

    if out is not None:
        source = click.get_current_context().get_parameter_source("format")
        given = None if source is ParameterSource.DEFAULT else options["format"]
        options["format"] = choose_format(out, given)
    out = out or f"{os.path.splitext(path.removesuffix('.gz'))[0]}.{options['format']}"
    hidden = not sys.stderr.isatty()
    notes: list[str] = []
    with click.progressbar(length=0, label="embedding", file=sys.stderr, hidden=hidden) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        count = embed_file(
            path,
            out,
            {**options, "checkpoint_seconds": 60},
            progress=progress,
            warn=notes.append,  # printed below the progress bar
            force=force,
        )
    for note in notes:
        click.echo(f"fsqueue: {note}", err=True)
    click.echo(f"{plural(count, 'sequence')}: {out}")

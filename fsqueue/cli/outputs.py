"""`fsqueue outputs`: which output was made from which input; outputs under their inputs' names."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from fsqueue.api import Pool
from fsqueue.cli.documents import json_list, print_lines
from fsqueue.cli.options import SETTINGS, json_option, note, plural, pool_argument
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.history.outputs import Output, unfinished
from fsqueue.pool.reader import PoolReader
from fsqueue.storage.untrusted import printable

EPILOG = """\b
A line is INPUT, a tab, and OUTPUT; for a claim of several inputs (plan command
--per-claim) it is ARCHIVE.tar:MEMBER. --json also has what made each output,
as its worker recorded it: host, GPU and driver, CPU, versions of fsqueue,
Python and all imported packages, attempt, seconds, size and CRC-32, a digest
of the options, and the program with its arguments.

\b
  fsqueue outputs pool/ | cut -f2 | xargs cat
  fsqueue outputs pool/ --link results/          results/a.fq.gz.out, ...
  fsqueue outputs pool/ --json | jq '.outputs[].provenance.gpu.driver' | sort | uniq -c
"""


@click.command("outputs", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option(
    "--link",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Make DIR hold every output under its input's name, as hard links; nothing there is "
    "replaced.",
)
@json_option
def outputs(pool: Pool, link: str | None, as_json: bool) -> None:
    """List the outputs of finished claims with the inputs they were made from."""
    if link is not None:
        if as_json:
            raise UsageError("--link and --json exclude each other.")
        return _link(pool, link)
    if as_json:
        rows = (
            {
                "id": output.id,
                "output": str(output.path),
                "inputs": list(map(str, output.inputs)),
                "members": output.members,
                "provenance": output.provenance and asdict(output.provenance),
            }
            for output in pool.outputs(provenance=True)
        )
        return print_lines(json_list("outputs", rows))
    print_lines(line for output in pool.outputs() for line in _lines(output))
    return _note_unfinished(pool)


def _lines(output: Output) -> list[str]:
    path = printable(str(output.path), 4000)
    if not output.members:
        return [f"{printable(str(each), 4000)}\t{path}" for each in output.inputs] or [f"-\t{path}"]
    return [
        f"{printable(str(each), 4000)}\t{path}:{printable(member, 4000)}"
        for each, member in zip(output.inputs, output.members, strict=False)
    ]


def _link(pool: Pool, directory: str) -> None:
    done = pool.link_outputs(directory)
    already = f", {done.already:,} there before" if done.already else ""
    click.echo(f"{plural(done.made, 'output')} laid into {printable(directory)}{already}.")
    _note_unfinished(pool)
    for path in done.in_the_way[:5]:
        note(f"{printable(path)} is another file, and was left alone.")
    if done.in_the_way:
        note(f"{plural(len(done.in_the_way), 'name')} taken. Remove those, or choose another DIR.")
        sys.exit(ExitStatus.ERROR)


def _note_unfinished(pool: Pool) -> None:
    if count := unfinished(PoolReader(pool.root)):
        note(f"{plural(count, 'claim')} not done yet. See: fsqueue status {printable(pool.root)}")

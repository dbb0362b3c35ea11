"""`fsqueue embed`: one module for each command, which parses, calls one function, and prints.

Registered under the entry-point group `fsqueue.commands`. What a command needs is imported when it
is called. The only door to click.
"""

from __future__ import annotations

import sys

import click

from embed.cli.calibrate import calibrate_command
from embed.cli.export import export_command
from embed.cli.file import file_command
from embed.cli.merge import merge_command
from embed.cli.prepare import prepare_command
from embed.cli.search import search_command
from embed.cli.store import store_group
from fsqueue import FsqueueError
from fsqueue.cli.options import SETTINGS


@click.group("embed", context_settings=SETTINGS)
def embed() -> None:
    """Prepare inputs, merge outputs, embed one file, or search a store.

    \b
    From contigs to the features of two models:
      fsqueue embed prepare contigs.fa -o prepared/
      fsqueue plan embed pool/ prepared/contigs_nucleotide.fa --model zhihan1996/DNABERT-S
      fsqueue plan embed pool/ prepared/contigs_protein.faa --model facebook/esm2_t36_3B_UR50D
      fsqueue run pool/
      fsqueue embed merge pool/ features.safetensors
    """


for command in (
    prepare_command,
    merge_command,
    file_command,
    calibrate_command,
    search_command,
    export_command,
    store_group,
):
    embed.add_command(command)


def main() -> None:
    """Run `python -m embed FILE`."""
    try:
        file_command(prog_name="python -m embed")
    except FsqueueError as error:
        click.echo(f"embed: {error}", err=True)
        sys.exit(error.exit_status)

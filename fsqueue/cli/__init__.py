"""The command line: one file per command, which parses, calls one function, and prints.

The only door to click. Commands are imported when they are called, so that `fsqueue --help` starts
at once; what a command needs beyond that (rich, pynvml, a handler) it imports itself.

Exit status: 0 everything done; 1 error; 2 usage; 3 finished, but some claims failed; 4 the machine
or file system lacks something assumed; 5 work remains that this worker could not take; 75 drained
before the end; 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
from typing import Any, Final, NoReturn

import click

from fsqueue.errors import ExitStatus, FsqueueError
from fsqueue.processes import standard_streams
from fsqueue.storage.untrusted import printable
from fsqueue.version import __version__

SHOWN_MAX: Final = 4000
COMMANDS: Final = {
    "plan": "Plan inputs into claims.",
    "work": "Work on a pool: take claims until nothing is left to take.",
    "slurm": "Submit arrays of workers to SLURM.",
    "script": "Print workers for Grid Engine, PBS, LSF, Flux, Kubernetes or HyperQueue.",
    "run": "Run a worker per GPU here, with the dashboard, until all is done.",
    "watch": "Watch a pool live.",
    "status": "Show a pool's progress.",
    "workers": "List a pool's workers.",
    "services": "List workers by capability.",
    "wait": "Wait until a pool is done.",
    "failed": "List failed claims, and why they failed.",
    "outputs": "List outputs by input, or lay them under their inputs' names.",
    "joblog": "List every attempt, as GNU parallel does.",
    "trace": "Write what happened as a trace for ui.perfetto.dev.",
    "report": "Write how a pool went as one HTML page.",
    "retry": "Put failed claims back.",
    "forget": "Give failed claims up for good.",
    "recover": "Put back what dead workers hold, now.",
    "drain": "Order workers to finish their claim and leave.",
    "cancel": "Take claims out of the pool.",
    "explain": "Explain where a claim is, or how workers score for a need.",
    "broadcast": "Send a job to every capable worker.",
    "clean": "Remove what killed processes left behind.",
    "check": "Verify a pool's invariants on disk.",
    "doctor": "Find out whether a directory can hold a pool.",
    "gpus": "Show this machine's GPUs and their weights.",
}
"""Each is in the module of its name; the texts are here so that --help imports none of them."""

EPILOG: Final = """\b
Examples:
  fsqueue plan embed pool/ proteins.faa --model facebook/esm2_t6_8M_UR50D
  CUDA_VISIBLE_DEVICES=0 fsqueue work pool/
  fsqueue watch pool/
  ls pool/running

\b
Exit status: 0 done, 1 error, 2 usage, 3 some claims failed, 4 the machine lacks
something, 5 work remains that this worker could not take, 75 drained, 130/143
stopped by a signal. FSQUEUE_POOL stands in for POOL, and FSQUEUE_STEAL_INTERVAL
and the like for options.
Shell completion: eval "$(_FSQUEUE_COMPLETE=bash_source fsqueue)"
"""


class ReaderLeft(Exception):
    """The reader of a pipe that we write to has left. click would answer 1 to the OSError."""


class Commands(click.Group):
    """The commands of the table above, and those that other packages register."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # a mount that shuts us out says ESHUTDOWN
                raise ReaderLeft from error
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(set(_extensions()) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module = importlib.import_module(f"fsqueue.cli.{name}")
            command: click.Command = getattr(module, name)
            return command
        if name in (found := _extensions()):
            extension: click.Command = found[name].load()
            return extension
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = list(COMMANDS.items())
        for name in self.list_commands(ctx)[len(rows) :]:
            try:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str(limit=70) if command else ""))
            except (ImportError, AttributeError) as error:
                rows.append((name, f"(cannot be loaded: {error})"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _extensions() -> dict[str, Any]:
    from importlib.metadata import entry_points  # late: most commands are in the table

    return {entry.name: entry for entry in entry_points(group="fsqueue.commands")}


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="fsqueue %(version)s")
@click.option("-v", "--verbose", count=True, help="Increase verbosity; repeat for debug output.")
def cli(verbose: int) -> None:
    """Spread a batch of GPU work over every GPU that can see one directory.

    A claim is a file, and taking it is a rename. No server, no database.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    from fsqueue.cli.stderr_log import StderrLog

    handler = StderrLog()
    handler.setFormatter(OneLine("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])


class OneLine(logging.Formatter):
    """Show each message on one line, whatever the names in it contain."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record), SHOWN_MAX)


def main() -> NoReturn:
    """Run the command line and exit; every FsqueueError is one line on stderr."""
    standard_streams.open_missing()
    try:
        cli(standalone_mode=False)
        sys.exit(0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except FsqueueError as error:
        _fail(str(error), error.exit_status)
    except ReaderLeft:
        # What is still buffered would fail again at exit, and change the status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}. {_advice(error)}", ExitStatus.ERROR)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"fsqueue: {printable(message, SHOWN_MAX)}", err=True)
    sys.exit(status)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space, then run the same command again: nothing half-written counts."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "This pool cannot be written from here; check the mount and the directory's owner."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "This process may open no more files; raise the limit (ulimit -n)."
    if error.errno in (errno.ESHUTDOWN, errno.ENOTCONN):
        return (
            "The file system disconnected this host, which was silent for too long. Mount it again."
        )
    return "If it persists, check the file system."

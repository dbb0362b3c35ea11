"""`fsqueue broadcast`: one copy of a job to every capable worker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fsqueue.cli.options import SETTINGS, Duration, pool_argument, print_json
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.pool.settings import PoolDirectory

if TYPE_CHECKING:
    from fsqueue.broadcast.broadcast import Broadcast

EPILOG = """\b
Examples:
  fsqueue broadcast pool/ --job-type warmup --job-data '{}'
  fsqueue broadcast pool/ --job-type selftest --job-data '{}' --wait
  fsqueue broadcast pool/ --show last
  fsqueue broadcast pool/ --job-type rag_ingestion --required-capability embeddings \\
      --job-data '{"documents": ["manuals/"], "collection": "manuals", "chunk_size": 512}'

\b
warmup loads what the pool's plans need, selftest runs a known input, evict lets
go of what is loaded, drain lets workers leave; any other job is run by the
installed handler of that name, which finds the data in Work.payload and
data["options"], completed, in Work.options.

\b
rag_ingestion embeds documents, texts or paths, into a store: every worker all of
them, sharing the work through the store, or with --scatter each its part. "store"
and "model" in the data, else FSQUEUE_STORE and FSQUEUE_TEXT_MODEL, say where and by
what.

\b
Exit status: 0 all accepted (with --wait: and done), 3 some not (with --show: some
failed), 4 no worker is capable.
"""


@click.command("broadcast", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option("--job-type", metavar="TYPE", help="warmup, selftest, evict, drain or a handler.")
@click.option("--job-data", metavar="JSON|@FILE", help="The job's data, a JSON object.")
@click.option("--required-capability", metavar="WORD", help="Only workers that offer this.")
@click.option("--scatter", is_flag=True, help="Tell each copy that it is part `shard` of `shards`.")
@click.option("--wait", is_flag=True, help="Wait for the copies and print what became of each.")
@click.option("--show", metavar="ID|last", help="Print what became of an earlier one instead.")
@click.option("--timeout", type=Duration(), default=3600.0, show_default=True,
              help="With --wait: give up after so long.")  # fmt: skip
def broadcast(pool: PoolDirectory, **given: Any) -> None:
    """Send one copy of a job to every capable worker that lives; print the response as JSON.

    A worker runs it after the claim that it runs now; nobody steals it.
    """
    from fsqueue.broadcast.broadcast import BroadcastRequest, broadcast, made_before

    if given["show"] is not None:
        if given["job_type"] or given["job_data"]:
            raise UsageError("--show ID looks at an earlier broadcast, and sends nothing.")
        _tell(pool, made_before(pool, given["show"]), given)
    if given["job_type"] is None or given["job_data"] is None:
        raise UsageError("a broadcast needs both --job-type (job_type) and --job-data (job_data).")
    data = _data(given["job_data"])
    order = BroadcastRequest(
        given["job_type"], data, given["required_capability"], given["scatter"]
    )
    made = broadcast(pool, order)
    if not given["wait"]:
        answer = made.response()
        print_json(answer)
        click.echo(f"what becomes of it: fsqueue broadcast {pool.root} --show {made.id}", err=True)
        sys.exit(ExitStatus.SOME_FAILED if answer["failed"] else ExitStatus.DONE)
    _tell(pool, made, given)


def _tell(pool: PoolDirectory, made: Broadcast, given: dict[str, Any]) -> NoReturn:
    """Print what became of every copy, waiting for it first if that was asked."""
    from fsqueue.broadcast.broadcast import follow

    if given["wait"]:
        deadline = time.monotonic() + given["timeout"]
        follow(pool, made, sleep=lambda: time.sleep(0.5), give_up=deadline)
    print_json(made.outcome())
    outcomes = {copy.outcome for copy in made.copies}
    unfit = {"failed", "refused"} | ({"waiting", "running"} if given["wait"] else set())
    failed = outcomes & unfit or made.totals().get("failed")
    sys.exit(ExitStatus.SOME_FAILED if failed else ExitStatus.DONE)


def _data(text: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise UsageError(f"--job-data is not JSON ({error}). Write a JSON object.") from error
    if not isinstance(value, dict):
        raise UsageError("--job-data (job_data) is not a JSON object, like '{}'.")
    return value

"""`fsqueue broadcast`: one copy of a job to every capable worker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fsqueue.api import Pool
from fsqueue.cli.options import SETTINGS, Duration, note, pool_argument, print_json
from fsqueue.errors import ExitStatus, UsageError

if TYPE_CHECKING:
    from fsqueue.broadcast.broadcast import Broadcast

POLL_S = 0.5
EPILOG = """\b
Examples:
  fsqueue broadcast pool/ --job-type warmup --job-data '{}'
  fsqueue broadcast pool/ --job-type selftest --job-data '{}' --wait
  fsqueue broadcast pool/ --show last
  fsqueue broadcast pool/ --job-type rag_ingestion --required-capability embeddings \\
      --job-data '{"documents": ["manuals/"], "collection": "manuals", "chunk_size": 512}'

\b
warmup loads what the pool's plans need, selftest runs a known input, evict unloads
what is loaded, drain makes workers leave; any other job is run by the installed
handler of that name, which finds the data in Work.payload and data["options"],
completed, in Work.options.

\b
rag_ingestion embeds documents, given as texts or paths, into a store: each worker
is sent all of them and they share the work through the store, or with --scatter
each is sent its part. The store and the model come from "store" and "model" in the
data, else from FSQUEUE_STORE and FSQUEUE_TEXT_MODEL.

\b
Exit status: 0 all accepted (with --wait: and done), 3 some not (with --show: some
failed), 4 no worker is capable.
"""


@click.command("broadcast", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option("--job-type", metavar="TYPE", help="warmup, selftest, evict, drain or a handler.")
@click.option("--job-data", metavar="JSON|@FILE", help="The job's data, a JSON object.")
@click.option("--required-capability", metavar="WORD", help="Only workers that offer this.")
@click.option("--scatter", is_flag=True, help="Number the copies: each is `shard` of `shards`.")
@click.option("--wait", is_flag=True, help="Wait for the copies, then print their outcomes.")
@click.option("--show", metavar="ID|last", help="Print the outcomes of an earlier broadcast.")
@click.option(
    "--timeout",
    type=Duration(),
    default=3600.0,
    show_default=True,
    help="With --wait: give up after this long.",
)
def broadcast(
    pool: Pool,
    job_type: str | None,
    job_data: str | None,
    required_capability: str | None,
    scatter: bool,
    wait: bool,
    show: str | None,
    timeout: float,
) -> None:
    """Send one copy of a job to every capable worker that is alive; print the response as JSON.

    A worker runs its copy after its current claim; copies are never stolen.
    """
    from fsqueue.broadcast.broadcast import BroadcastRequest, broadcast, find_broadcast

    timeout_s = timeout if wait else None
    if show is not None:
        if job_type or job_data:
            raise UsageError("--show ID prints an earlier broadcast, and sends nothing.")
        _print_outcome(pool, find_broadcast(pool, show), timeout_s)
    if job_type is None or job_data is None:
        raise UsageError("a broadcast needs both --job-type (job_type) and --job-data (job_data).")
    request = BroadcastRequest(job_type, _parse_data(job_data), required_capability, scatter)
    made = broadcast(pool, request)
    if wait:
        _print_outcome(pool, made, timeout_s)
    answer = made.response()
    print_json(answer)
    note(f"to see its outcome: fsqueue broadcast {pool.root} --show {made.id}")
    sys.exit(ExitStatus.SOME_FAILED if answer["failed"] else ExitStatus.DONE)


def _print_outcome(pool: Pool, made: Broadcast, timeout_s: float | None) -> NoReturn:
    """Print the outcome of every copy, after waiting for them if there is a timeout."""
    from fsqueue.broadcast.broadcast import Outcome, follow

    unfit = {Outcome.FAILED, Outcome.REFUSED}
    if timeout_s is not None:
        give_up = time.monotonic() + timeout_s
        follow(pool, made, sleep=lambda: time.sleep(POLL_S), give_up=give_up)
        unfit |= {Outcome.WAITING, Outcome.RUNNING}
    print_json(made.outcome())
    outcomes = {copy.outcome for copy in made.copies}
    failed = outcomes & unfit or made.totals().get("failed")
    sys.exit(ExitStatus.SOME_FAILED if failed else ExitStatus.DONE)


def _parse_data(text: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise UsageError(f"--job-data is not JSON ({error}). Write a JSON object.") from error
    if not isinstance(value, dict):
        raise UsageError("--job-data (job_data) is not a JSON object, like '{}'.")
    return value

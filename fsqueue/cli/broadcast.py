"""`fsqueue broadcast`: one copy of a job to every capable worker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from fsqueue.cli.options import SETTINGS, Duration, pool_argument, print_json
from fsqueue.errors import UsageError
from fsqueue.pool import Pool

EPILOG = """\b
Examples:
  fsqueue broadcast pool/ --job-type warmup --job-data '{}'
  fsqueue broadcast pool/ --job-type selftest --job-data '{}' --wait
  fsqueue broadcast pool/ --job-type ingest --job-data @job.json --scatter \\
      --required-capability embeddings

\b
warmup loads what the pool's plans need, selftest runs a known input, evict lets
go of what is loaded, drain lets workers leave; any other job is run by the
installed handler of that name, which finds the data in Work.payload and
data["options"], completed, in Work.options.

\b
Exit status: 0 all accepted (with --wait: and done), 3 some not, 4 no worker is
capable.
"""


@click.command("broadcast", context_settings=SETTINGS, epilog=EPILOG)
@pool_argument
@click.option("--job-type", metavar="TYPE", help="warmup, selftest, evict, drain or a handler.")
@click.option("--job-data", metavar="JSON|@FILE", help="The job's data, a JSON object.")
@click.option("--required-capability", metavar="WORD", help="Only workers that offer this.")
@click.option("--scatter", is_flag=True, help="Tell each copy that it is part `shard` of `shards`.")
@click.option("--wait", is_flag=True, help="Wait for the copies and print what became of each.")
@click.option("--timeout", type=Duration(), default=3600.0, show_default=True,
              help="With --wait: give up after so long.")  # fmt: skip
def broadcast(pool: Pool, **given: Any) -> None:
    """Send one copy of a job to every capable worker that lives; print the response as JSON.

    A worker runs it after the claim that it runs now; nobody steals it.
    """
    from fsqueue.broadcast import Order, broadcast, follow

    if given["job_type"] is None or given["job_data"] is None:
        raise UsageError("a broadcast needs both --job-type (job_type) and --job-data (job_data).")
    data = _data(given["job_data"])
    order = Order(given["job_type"], data, given["required_capability"], given["scatter"])
    made = broadcast(pool, order)
    if not given["wait"]:
        answer = made.response()
        print_json(answer)
        sys.exit(3 if answer["failed"] else 0)
    deadline = time.monotonic() + given["timeout"]
    follow(pool, made, sleep=lambda: time.sleep(0.5), give_up=deadline)
    print_json(made.outcome())
    sys.exit(0 if all(copy.outcome == "done" for copy in made.copies) else 3)


def _data(text: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(text[1:]).read_bytes() if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise UsageError(f"--job-data is not JSON ({error}). Write a JSON object.") from error
    if not isinstance(value, dict):
        raise UsageError("--job-data (job_data) is not a JSON object, like '{}'.")
    return value

"""`fsqueue explain`: where a claim is and why; how workers score for a need."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from fsqueue.api import Pool, open_pool
from fsqueue.cli.options import (
    SETTINGS,
    json_option,
    plural,
    print_json,
    print_table,
    split_pool,
    trust_option,
)
from fsqueue.errors import ExitStatus, UsageError
from fsqueue.pool.layout import State
from fsqueue.pool.names import ID
from fsqueue.scheduling.peers import candidates
from fsqueue.scheduling.score import Candidate, Need, fits, rank
from fsqueue.scheduling.score import explain as terms_of
from fsqueue.storage.untrusted import printable

if TYPE_CHECKING:
    from fsqueue.history.provenance import Provenance

EPILOG = """\b
Examples:
  fsqueue explain pool/ proteins-5c1f09ab33d2
  fsqueue explain pool/ data/proteins.faa
  fsqueue explain pool/ --need '{"service": "embed", "model": "esm2_t6_8m_ur50d"}'
  fsqueue explain --workers workers.json --need '{"service": "vllm"}' --json

Exit status: 0, or 1 if the pool has no such claim or input, or 5 if no worker qualifies.
"""
PROGRAM_MAX: Final = 2000
NEED_EXAMPLE: Final = """For example: '{"service": "vllm", "model": "llama3.2"}'."""


@click.command("explain", context_settings=SETTINGS, epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[POOL] [ID|INPUT]...")
@trust_option
@click.option(
    "--need",
    metavar="JSON",
    help="Score workers for this: service, model, required_capability, min_tier.",
)
@click.option(
    "--workers",
    metavar="FILE",
    help="Score the workers in this file, as printed by `workers --json` or as heartbeats. "
    "Default: those of POOL.",
)
@json_option
def explain(words: tuple[str, ...], need: str | None, workers: str | None, as_json: bool) -> None:
    """Explain where a claim is and why, or how workers score for a need.

    With ID: where the claim is, since when, what made its output, what went wrong, which workers
    could take it, and why none has. With INPUT, a planned file: its claims and their outputs. With
    --need: every term of every worker's score.
    """
    if workers is not None:
        if words or need is None:
            raise UsageError("--workers FILE is used with --need JSON, and without POOL and ID.")
        _explain_need(_candidates(_read_json(Path(workers))), _parse_need(need), as_json)
    root, ids = split_pool(words)
    pool = open_pool(root)
    if need is not None:
        if ids:
            raise UsageError("--need is about workers and ID about a claim; use one of them.")
        _explain_need(candidates(pool), _parse_need(need), as_json)
    if len(ids) != 1:
        raise UsageError(
            "name one claim by its ID, the part of its name before the first dot, or one input by "
            "its path."
        )
    if not ID.fullmatch(ids[0]) or os.path.lexists(ids[0]):
        _explain_input(pool, ids[0], as_json)
    _explain_claim(pool, ids[0], as_json)


# ---- scores ----


def _explain_need(workers: list[Candidate], need: Need, as_json: bool) -> NoReturn:
    rows: list[dict[str, Any]] = [
        {
            "worker_id": worker.worker_id,
            "score": round(score, 9),
            "terms": [asdict(term) for term in terms_of(worker, need)],
        }
        for worker, score in rank(workers, need)
    ]
    reasons = {each.worker_id: why for each in workers if (why := fits(each, need))}
    if as_json:
        out = [{"worker_id": worker, "why": why} for worker, why in reasons.items()]
        best = rows[0]["worker_id"] if rows else None
        print_json({"need": asdict(need), "best": best, "workers": rows, "left_out": out})
        sys.exit(ExitStatus.DONE if rows else ExitStatus.WORK_REMAINS)
    for row in rows:
        click.echo(f"{printable(row['worker_id'])}: {row['score']:g}")
        shown = [(f"  {t['term']}", f"{t['points']:+.2f}", t["why"]) for t in row["terms"]]
        print_table(("  term", "points", "why"), shown)
    for worker, why in reasons.items():
        click.echo(f"{printable(worker)}: does not qualify: {why}")
    sys.exit(ExitStatus.DONE if rows else ExitStatus.WORK_REMAINS)


def _parse_need(text: str) -> Need:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--need is not JSON ({error}). {NEED_EXAMPLE}") from error
    if not isinstance(facts, dict):
        raise UsageError(f"--need is not a JSON object. {NEED_EXAMPLE}")
    return Need.read(facts)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as JSON ({error}). To make it: fsqueue workers POOL --json"
        ) from error


def _candidates(document: Any) -> list[Candidate]:
    """Return the workers of {"workers": [...]}, of a bare list, or of one heartbeat."""
    if isinstance(document, dict):
        document = document.get("workers", [document])
    rows = document if isinstance(document, list) else []
    return [Candidate.read(row) for row in rows if isinstance(row, dict)]


# ---- one input ----


def _explain_input(pool: Pool, given: str, as_json: bool) -> NoReturn:
    from fsqueue.monitor.locate import input_claims

    path = os.path.abspath(given)
    found = list(input_claims(pool, path))
    status = ExitStatus.DONE if found else ExitStatus.ERROR
    if as_json:
        print_json({"pool": pool.root, "input": path, "claims": [asdict(each) for each in found]})
        sys.exit(status)
    if not found:
        click.echo(f"{printable(path)} is no input of a plan in {pool.root}, under this path.")
        sys.exit(status)
    click.echo(f"{printable(path)}: {plural(len(found), 'claim')}")
    rows = [
        (each.id, each.state, str(each.plan), _output(each.state, each.output)) for each in found
    ]
    print_table(("claim", "state", "plan", "output"), rows, left=4)
    sys.exit(status)


def _output(state: str, path: str) -> str:
    return path if state == State.DONE else "-"


# ---- one claim ----


def _explain_claim(pool: Pool, id: str, as_json: bool) -> NoReturn:
    from fsqueue.history.provenance import provenance
    from fsqueue.monitor.locate import find

    found = find(pool, id)
    done = next((place.name for place in found.places if place.state == State.DONE), None)
    made = provenance(pool, done) if done is not None else None
    if as_json:
        print_json(asdict(found) | {"pool": pool.root, "provenance": made and asdict(made)})
        sys.exit(ExitStatus.DONE if found.places else ExitStatus.ERROR)
    if not found.places and found.planned_by is not None:
        click.echo(
            f"{id} was planned by plan {found.planned_by} and is nowhere in {pool.root}: its file "
            f"was removed. Plan it again: fsqueue check --repair {pool.root}"
        )
    elif not found.places:
        click.echo(f"{id} is nowhere in {pool.root}: not planned, or still being planned.")
    for place in found.places:
        since = f" since {_local(found.since)}" if found.since else ""
        name = place.name
        click.echo(f"{id} is {place.state}{since}: {place.path}")
        owner = f", worker {name.owner}" if name.owner else ""
        priority = f", priority {name.priority}" if name.priority else ""
        click.echo(f"kind {name.kind}, cost {name.cost:,}, attempt {name.attempt}{priority}{owner}")
    for line in _made(made) if made else ():
        click.echo(line)
    if found.takers or found.forecast:
        ahead = plural(found.ahead, "claim")
        click.echo(f"\n{ahead} of its spool will be taken before it; {found.forecast}.")
        rows = [(each.worker, "yes" if each.may else "no", each.why) for each in found.takers]
        print_table(("worker", "may take it", "why it has not"), rows, left=3)
    if found.errors:
        click.echo()
        rows = [
            (f"attempt {e['attempt']}", str(e["worker"]), str(e["error"])) for e in found.errors
        ]
        print_table(("error", "worker", "what went wrong"), rows, left=3)
    if found.events:
        click.echo()
        rows = [(_local(e["t"]), e["event"], str(e.get("worker"))) for e in found.events]
        print_table(("when", "event", "worker"), rows, left=3)
    sys.exit(ExitStatus.DONE if found.places else ExitStatus.ERROR)


def _made(made: Provenance) -> Iterator[str]:
    """Yield lines about what made an output."""
    seconds = "" if made.seconds is None else f" in {made.seconds:,.1f} s"
    gpu = made.gpu.get("name", "")
    if gpu:
        gpu += f" ({made.gpu.get('uuid', 'no UUID')}, driver {made.gpu.get('driver', 'unknown')})"
    on = ", ".join(filter(None, (gpu, made.cpu, made.system)))
    yield f"made by {made.worker}{seconds}, {plural(made.bytes or 0, 'byte')}, CRC-32 {made.crc32}"
    if on:
        yield f"on {made.host}: {on}"
    versions = {"fsqueue": made.fsqueue, "python": made.python, **made.versions}
    if any(versions.values()):
        yield "with " + ", ".join(f"{name} {text}" for name, text in versions.items() if text)
    if made.program:
        program = printable(shlex.join(made.program), PROGRAM_MAX)
        yield f"program, exit status {made.exit_status}: {program}"
    yield f"options of {made.handler}: SHA-256 {made.options_sha256[:16]}"


def _local(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t))

"""`fsqueue plan HANDLER POOL INPUT...`: one subcommand for every installed handler."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Any, Final

import click

from fsqueue import api
from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    ProgressLine,
    TrailingCommand,
    TrustGroup,
    note,
    plural,
    print_json,
    print_table,
    split_pool,
)
from fsqueue.errors import ExitStatus, FsqueueError
from fsqueue.gpu.sharing import PER_GPU_MAX
from fsqueue.handler import Handler, Option, load_class, registered
from fsqueue.monitor import format
from fsqueue.pool.names import PRIORITY_MAX
from fsqueue.pool.requirements import TIER_NAMES
from fsqueue.pool.settings import ATTEMPTS_MAX, LEASE_S
from fsqueue.scheduling.planner import PlanResult
from fsqueue.storage.untrusted import printable

SPEEDS_SHOWN: Final = 8
EXAMPLES: Final = {
    "embed": "fsqueue plan embed pool/ *.faa --model facebook/esm2_t6_8M_UR50D --gpus 4090x2,3090",
    "python": "fsqueue plan python pool/ texts/ --file embed.py",
    "command": "fsqueue plan command pool/ reads/*.fa -- wc -l {input}",
}


class Handlers(click.Group):
    """The subcommands of `fsqueue plan`, made from the options that each handler declares."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(registered())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name, load_class(name)) if name in registered() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            try:
                rows.append((name, _first_line(load_class(name))))
            except (FsqueueError, AttributeError) as error:
                rows.append((name, f"(cannot be loaded: {error})"))
        with formatter.section("Handlers"):
            formatter.write_dl(rows)


@click.group("plan", cls=Handlers, context_settings=SETTINGS)
def plan() -> None:
    """Plan inputs into claims. Inputs that were planned before add nothing.

    INPUT is a file, a directory (its files, in natural order) or @FILE (one path per line, relative
    ones from the directory of FILE). What is in a directory and is not planned is named. Plan as
    often as you like, also while workers run; an input that changed replaces its former version.
    """


def _command(name: str, handler: type[Handler]) -> click.Command:
    tail = f" -- {handler.trailing}" if handler.trailing else ""
    params: list[click.Parameter] = [_option(option) for option in handler.options]
    params += [
        click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, metavar=f"POOL INPUT...{tail}"),
        click.Option(["--recursive", "-r"], is_flag=True,
                     help="Plan the files in the sub-directories of a directory, too."),
        click.Option(["--gpus"], metavar="SPEC", help="Spools: 4090x2,3090 or a100:1.2 or cpux4 or "
                     "auto or @FILE. Default: the pool's, else auto."),
        click.Option(["--weight"], multiple=True, metavar="NAME=W|@FILE",
                     help="Override the weight of a spool or a model: 4090=1.6, cpu=0.1, gpu0=1.3. "
                     "Repeatable."),
        click.Option(["--per-gpu"], type=click.IntRange(1, PER_GPU_MAX), default=1, metavar="N",
                     allow_from_autoenv=False,
                     help="N workers will share each GPU (run --per-gpu N): GPUs on which a share "
                     "of the memory is too small for the work get none of it. Default: 1."),
        click.Option(["--gpu-weighted/--no-gpu-weighted"], default=True,
                     help="Give faster GPUs more of the work. Default: on."),
        click.Option(["--claim-seconds"], type=Duration(), default=api.CLAIM_SECONDS,
                     show_default=True, help="Target duration of a claim on an RTX 3090, for "
                     "inputs that can be cut."),
        click.Option(["--min-tier"], type=click.Choice(TIER_NAMES),
                     help="Lowest tier of worker that may run the claims. Default: the handler's, "
                     "usually cpu."),
        click.Option(["--requires"], multiple=True, metavar="WORD",
                     help="Only workers started with --capability WORD may run the claims. "
                     "Repeatable."),
        click.Option(["--retry-requires"], default="", metavar="WORD",
                     help="A claim that fails for lack of memory is tried again only by workers "
                     "started with --capability WORD."),
        click.Option(["--timeout"], type=Duration(), default=0.0,
                     help="End an attempt that takes longer, such as 2h, and charge it. "
                     "Default: never."),
        click.Option(["--priority"], type=click.IntRange(0, PRIORITY_MAX), default=0,
                     help="Claims of a higher priority are taken first, by any worker that may. "
                     "Default: 0, the lowest."),
        click.Option(["--lease"], type=Duration(),
                     help="Lease of a new pool: a worker that is silent for this long is dead. "
                     f"Default: {LEASE_S:g}s."),
        click.Option(["--attempts"], type=click.IntRange(1, 100),
                     help=f"Attempts per claim in a new pool. Default: {ATTEMPTS_MAX}."),
        TrustGroup(),
        click.Option(["--dry-run"], is_flag=True,
                     help="Print what would be planned; change nothing."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."),
    ]  # fmt: skip
    example = EXAMPLES.get(name)
    return TrailingCommand(
        name,
        params=params,
        callback=lambda **given: _plan(name, handler, given),
        help=handler.__doc__,
        epilog=f"\b\nExample:\n  {example}" if example else None,
        context_settings=SETTINGS | {"ignore_unknown_options": False},
    )


def _option(option: Option) -> click.Option:
    flag = "--" + option.name.replace("_", "-")
    if isinstance(option.default, tuple):
        return click.Option([flag], multiple=True, help=option.help)
    if option.switch or isinstance(option.default, bool):
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=option.default, help=option.help)
    kind: Any = click.Choice(option.choices) if option.choices else _type(option)
    return click.Option(
        [flag],
        type=kind,
        default=option.default,
        required=option.required,
        show_default=option.default is not None,
        help=option.help,
    )


def _type(option: Option) -> Any:
    if option.duration:
        return Duration()
    return str if option.default is None else type(option.default)


def _plan(name: str, handler: type[Handler], given: dict[str, Any]) -> None:
    """Plan. The parameters are a dictionary here only, because each handler brings its own."""
    words = list(given["words"])
    options = {option.name: given[option.name.replace("-", "_")] for option in handler.options}
    trailing = click.get_current_context().meta.get("trailing", [])
    if handler.trailing:
        options["argv"] = trailing
    elif trailing:
        words += trailing
    root, inputs = split_pool(words)
    line = ProgressLine()

    def show_input(done: int, total: int, path: str) -> None:
        line.show(f"reading {done + 1} of {total}: {os.path.basename(path)[:50]!r}")
        if done + 1 == total:
            line.clear()

    result = api.plan(
        root,
        name,
        inputs,
        options,
        gpus=given["gpus"],
        weights=given["weight"],
        per_gpu=given["per_gpu"],
        gpu_weighted=given["gpu_weighted"],
        claim_seconds=given["claim_seconds"],
        min_tier=given["min_tier"],
        requires=given["requires"],
        retry_requires=given["retry_requires"],
        timeout_s=given["timeout"],
        priority=given["priority"],
        recursive=given["recursive"],
        lease_s=given["lease"],
        attempts_max=given["attempts"],
        dry_run=given["dry_run"],
        on_input=show_input if line.live else None,
    )
    _show(result, root, dry_run=given["dry_run"], as_json=given["as_json"])
    if result.bad:
        sys.exit(ExitStatus.ERROR)


def _show(result: PlanResult, root: str, *, dry_run: bool, as_json: bool) -> None:
    for line in (*result.bad, *result.notes):
        note(printable(line, 4000))
    if as_json:
        facts = asdict(result)
        del facts["assigned"], facts["kinds"]
        print_json(facts | {"pool": os.path.abspath(root), "dry_run": dry_run})
        return
    if result.total.claims:
        _show_shares(result)
    if result.total.claims:
        _show_speed(result)
    verb = "would be planned" if dry_run else "planned"
    already = f"; {plural(result.already, 'input')} planned before" if result.already else ""
    click.echo(f"{plural(result.total.claims, 'claim')} {verb}{already}.")
    if result.superseded:
        verb = "would be superseded" if dry_run else "superseded"
        click.echo(f"{plural(result.superseded, 'claim')} of former versions {verb}.")
    if result.brought_back:
        verb = "would wait" if dry_run else "wait"
        click.echo(
            f"{plural(result.brought_back, 'superseded claim')} {verb} again: their inputs are as "
            f"they were."
        )
    if result.number is not None:
        click.echo(f"Next: fsqueue run {root}    or, for each GPU: fsqueue work {root}")


def _show_shares(result: PlanResult) -> None:
    names = sorted(result.total.measures)
    measures = [name.upper() for name in names]
    header = ["SPOOL", "GPU", "WEIGHT", "CLAIMS", *measures, "COST", "SHARE"]
    rows: list[list[object]] = []
    for spool in result.spools:
        share = result.shares[spool.name]
        counts = [share.measures.get(name, 0) for name in names]
        part = f"{100 * share.cost / max(result.total.cost, 1):.1f} %"
        weight = f"{spool.weight:.2f}"
        rows.append([spool.name, spool.model, weight, share.claims, *counts, share.cost, part])
    total = result.total
    counts = [total.measures.get(name, 0) for name in names]
    rows.append(["total", "", "", total.claims, *counts, total.cost, "100.0 %"])
    print_table(header, rows, left=2)
    for name, why in result.too_small.items():
        click.echo(f"{name} gets no claims: its GPU is too small for them ({why}).")
    largest = 100 * result.largest / max(total.cost, 1)
    limit = 100 * result.cost_max / max(total.cost, 1)
    click.echo(
        f"Largest claim: {largest:.1f} % of all work; the limit, for inputs that can be cut, is "
        f"{limit:.1f} %."
    )


def _show_speed(result: PlanResult) -> None:
    """Say by which speeds the work is shared out, if not by weights, and how long it will take."""
    if result.measured:
        known = {spool.name: spool.weight for spool in result.spools}
        pairs = [f"{n} {s:.2f} (weight {known[n]:.2f})" for n, s in result.measured.items()]
        more = f", ... ({len(pairs):,} in all)" if len(pairs) > SPEEDS_SHOWN else ""
        click.echo(f"Shares are by measured speed: {', '.join(pairs[:SPEEDS_SHOWN])}{more}.")
    if result.eta_s is None:
        click.echo("How long it will take is known once a few claims are done.")
    else:
        how = "by measured speed" if result.measured else "by the handler's estimate or past runs"
        click.echo(
            f"All that waits takes about {format.duration(result.eta_s)} with a worker per spool, "
            f"{how}."
        )


def _first_line(handler: type[Handler]) -> str:
    return handler.__doc__.strip().splitlines()[0] if handler.__doc__ else ""

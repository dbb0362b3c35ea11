"""`fsqueue plan HANDLER POOL INPUT...`: one subcommand for every installed handler."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from fsqueue.cli.options import (
    SETTINGS,
    Duration,
    TrailingCommand,
    TrustGroup,
    plural,
    print_json,
    print_table,
    split_pool,
)
from fsqueue.errors import ExitStatus, FsqueueError, UsageError
from fsqueue.handler import Handler, Option, load_handler, registered
from fsqueue.maintenance.doctor.one_host import refuse_unfit
from fsqueue.pool.requirements import Tier
from fsqueue.pool.settings import (
    ATTEMPTS_MAX,
    LEASE_S,
    PoolDirectory,
    Spool,
    create_pool,
    open_pool,
)
from fsqueue.pool.untrusted import printable
from fsqueue.scheduling.inputs import expand_inputs
from fsqueue.scheduling.planner import CLAIM_S, Outcome, Request, plan_into, pool_spools, preview

TIERS: Final = {"gpu": Tier.GPU, "cpu": Tier.CPU, "storage": Tier.STORAGE}
EXAMPLES: Final = {
    "embed": "fsqueue plan embed pool/ *.faa --model facebook/esm2_t6_8M_UR50D --gpus 4090x2,3090",
    "command": "fsqueue plan command pool/ reads/*.fa -- wc -l {input}",
}


class Handlers(click.Group):
    """The subcommands of `fsqueue plan`, made from the options that each handler declares."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(registered())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(load_handler(name)) if name in registered() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            try:
                rows.append((name, _first_line(load_handler(name))))
            except (FsqueueError, AttributeError) as error:
                rows.append((name, f"(cannot be loaded: {error})"))
        with formatter.section("Handlers"):
            formatter.write_dl(rows)


@click.group("plan", cls=Handlers, context_settings=SETTINGS)
def plan() -> None:
    """Plan inputs into claims. Inputs that are planned already add nothing.

    INPUT is a file, a directory (its files, in natural order) or @FILE (one path a line). Plan as
    often as you like, also while workers run.
    """


def _command(handler: Handler) -> click.Command:
    tail = f" -- {handler.trailing}" if handler.trailing else ""
    params: list[click.Parameter] = [_option(option) for option in handler.options]
    params += [
        click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, metavar=f"POOL INPUT...{tail}"),
        click.Option(["--gpus"], metavar="SPEC", help="Spools: 4090x2,3090 or a100:1.2 or cpux4 or "
                     "auto or @FILE. Default: the pool's, else auto."),
        click.Option(["--weight"], multiple=True, metavar="NAME=W|@FILE",
                     help="Weigh a spool or a model otherwise: 4090=1.6, cpu=0.1, gpu0=1.3. May be "
                     "given more than once."),
        click.Option(["--gpu-weighted/--no-gpu-weighted"], default=True,
                     help="Weight file assignment by GPU capability. Default: on."),
        click.Option(["--claim-seconds"], type=Duration(), default=CLAIM_S, show_default=True,
                     help="Cut claims to take so long on an RTX 3090, where inputs can be cut."),
        click.Option(["--min-tier"], type=click.Choice(list(TIERS)),
                     help="Workers of this tier and better may do it. Default: cpu, or what the "
                     "handler says."),
        click.Option(["--requires"], multiple=True, metavar="WORD",
                     help="Only workers started with --capability WORD may do it. May be given "
                     "more than once."),
        click.Option(["--lease"], type=Duration(), default=LEASE_S, show_default=True,
                     help="A new pool's lease: a worker silent for so long is dead."),
        click.Option(["--attempts"], type=click.IntRange(1, 100), default=ATTEMPTS_MAX,
                     show_default=True, help="A new pool's attempts per claim."),
        TrustGroup(),
        click.Option(["--dry-run"], is_flag=True, help="Print the table; touch nothing."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document."),
    ]  # fmt: skip
    example = EXAMPLES.get(handler.name)
    return TrailingCommand(
        handler.name,
        params=params,
        callback=lambda **given: _plan(handler, given),
        help=type(handler).__doc__,
        epilog=f"\b\nExample:\n  {example}" if example else None,
        context_settings=SETTINGS | {"ignore_unknown_options": False},
    )


def _option(option: Option) -> click.Option:
    flag = "--" + option.name.replace("_", "-")
    if isinstance(option.default, bool):
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


def _type(option: Option) -> type:
    return str if option.default is None else type(option.default)


def _plan(handler: Handler, given: dict[str, Any]) -> None:
    words = list(given["words"])
    options = {option.name: given[option.name.replace("-", "_")] for option in handler.options}
    trailing = click.get_current_context().meta.get("trailing", [])
    if handler.trailing:
        options["argv"] = trailing
    elif trailing:
        words += trailing
    root, arguments = split_pool(words)
    inputs = expand_inputs(arguments)
    if not inputs:
        raise UsageError(f"no INPUT was given. See: fsqueue plan {handler.name} --help")
    pool = open_pool(root) if os.path.lexists(os.path.join(root, "pool.json")) else None
    spools = _spools(pool, given["gpus"], given["weight"])
    request = _request(handler, options, inputs, spools, given)
    progress = _show_progress if sys.stderr.isatty() else None
    if given["dry_run"]:
        outcome = preview(pool, request, progress=progress)
    else:
        if pool is None:
            refuse_unfit(root)
        pool = create_pool(root, lease_s=given["lease"], attempts_max=given["attempts"])
        outcome = plan_into(pool, request, progress=progress)
    _show(outcome, root, dry_run=given["dry_run"], as_json=given["as_json"])
    if outcome.bad:
        sys.exit(ExitStatus.ERROR)


def _request(
    handler: Handler,
    options: dict[str, Any],
    inputs: list[str],
    spools: list[Spool],
    given: dict[str, Any],
) -> Request:
    if not given["claim_seconds"] > 0:
        raise UsageError("--claim-seconds must be more than 0; 60 to 120 are sensible.")
    request = Request(
        handler,
        handler.prepare(options),
        inputs,
        spools,
        given["gpu_weighted"],
        given["claim_seconds"],
        TIERS.get(given["min_tier"]),
        given["requires"],
    )
    request.kind("x")  # a bad word among --requires is said before anything is read
    return request


def _spools(pool: PoolDirectory | None, spec: str | None, weights: Sequence[str]) -> list[Spool]:
    from fsqueue.scheduling.gpu_spec import SpoolSpec, parse_gpus, parse_weights, weighed

    known = {spool.name: spool for spool in pool_spools(pool)} if pool else {}
    given = parse_weights(weights)
    if spec is None and known:
        specs = [SpoolSpec(s.name, s.model, s.weight, s.why) for s in known.values()]
    else:
        specs = parse_gpus(spec or "auto")
    asked = [Spool(s.name, s.model, s.weight, s.why) for s in weighed(specs, given)]
    for spool in asked if given else ():
        stands = known.get(spool.name, spool)
        if stands.weight != spool.weight and spool.why == "given by --weight":
            raise UsageError(
                f"--weight: {spool.name} weighs {stands.weight:g} in this pool since its first "
                f"plan. To change that, edit spools/{spool.name}.json."
            )
    return [known.get(spool.name, spool) for spool in asked]


def _show_progress(done: int, total: int, path: str) -> None:
    name = os.path.basename(path)
    click.echo(f"\r\x1b[Kreading {done + 1} of {total}: {name[:50]!r}", nl=False, err=True)
    if done + 1 == total:
        click.echo("\r\x1b[K", nl=False, err=True)


def _show(outcome: Outcome, root: str, *, dry_run: bool, as_json: bool) -> None:
    for line in (*outcome.bad, *outcome.notes):
        click.echo(f"fsqueue: {printable(line, 4000)}", err=True)
    if as_json:
        facts = asdict(outcome)
        del facts["assigned"], facts["kinds"]
        print_json(facts | {"pool": os.path.abspath(root), "dry_run": dry_run})
        return
    total = outcome.total
    if total.claims:
        _show_shares(outcome)
    verb = "would be planned" if dry_run else "planned"
    already = f"; {plural(outcome.already, 'input')} planned before" if outcome.already else ""
    click.echo(f"{plural(total.claims, 'claim')} {verb}{already}.")
    if outcome.number is not None:
        click.echo(f"Now: fsqueue run {root}    or, per GPU: fsqueue work {root}")


def _show_shares(outcome: Outcome) -> None:
    names = sorted(outcome.total.measures)
    header = [
        "SPOOL",
        "GPU",
        "WEIGHT",
        "CLAIMS",
        *(name.upper() for name in names),
        "COST",
        "SHARE",
    ]
    rows = []
    for spool in outcome.spools:
        share = outcome.shares[spool.name]
        counts = [share.measures.get(name, 0) for name in names]
        part = f"{100 * share.cost / max(outcome.total.cost, 1):.1f} %"
        rows.append(
            [
                spool.name,
                spool.model,
                f"{spool.weight:.2f}",
                share.claims,
                *counts,
                share.cost,
                part,
            ]
        )
    total = outcome.total
    counts = [total.measures.get(name, 0) for name in names]
    rows.append(["total", "", "", total.claims, *counts, total.cost, "100.0 %"])
    print_table(header, rows, left=2)
    largest = 100 * outcome.largest / max(total.cost, 1)
    limit = 100 * outcome.cost_max / max(total.cost, 1)
    click.echo(
        f"Largest claim: {largest:.1f} % of all work; the limit, where inputs can be divided, is "
        f"{limit:.1f} %."
    )


def _first_line(handler: Handler) -> str:
    return (type(handler).__doc__ or "").strip().splitlines()[0] if type(handler).__doc__ else ""

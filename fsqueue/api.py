"""The public functions and the class `Pool`: whatever a command does, a function here does.

    import fsqueue

    fsqueue.plan("pool", "command", ["reads/"], {"argv": ["wc", "-c", "{input}"]}, gpus="cpux2")
    pool = fsqueue.open_pool("pool")
    pool.run(workers=2)
    for output in pool.outputs():
        print(output.inputs, output.path)

Nothing here prints, except `run` and `watch`, which exist to show something. Errors are those of
`fsqueue.errors`. Each part is imported when it is first needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fsqueue.errors import UsageError
from fsqueue.gpu.sharing import PER_GPU_MAX
from fsqueue.handler import Handler, Work, complete_options, load_handler
from fsqueue.pool import settings
from fsqueue.pool.layout import Order, State
from fsqueue.pool.names import PRIORITY_MAX
from fsqueue.pool.requirements import tier_named
from fsqueue.pool.settings import ATTEMPTS_MAX, LEASE_S, PoolDirectory

if TYPE_CHECKING:
    from fsqueue.history.failures import FailedClaim
    from fsqueue.history.outputs import Linked, Output
    from fsqueue.history.select import Matching
    from fsqueue.maintenance.repair import Cancellation, Retried
    from fsqueue.monitor.snapshot import Snapshot
    from fsqueue.scheduling.planner import PlanResult, Progress
    from fsqueue.worker.launch import WorkOptions
    from fsqueue.worker.recovery import Recovered

log = logging.getLogger(__name__)

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

CLAIM_SECONDS: Final = 90.0


def plan(
    pool: str | os.PathLike[str],
    handler: str | Callable[[Work], object] | Callable[[Work, Any], object] | type[Handler],
    inputs: Paths,
    options: Mapping[str, Any] | None = None,
    *,
    gpus: str | None = None,
    weights: Sequence[str] = (),
    per_gpu: int = 1,
    gpu_weighted: bool = True,
    claim_seconds: float = CLAIM_SECONDS,
    min_tier: str | None = None,
    requires: Sequence[str] = (),
    retry_requires: str = "",
    timeout_s: float = 0.0,
    priority: int = 0,
    recursive: bool = False,
    lease_s: float | None = None,
    attempts_max: int | None = None,
    dry_run: bool = False,
    on_input: Progress | None = None,
) -> PlanResult:
    """Plan inputs into claims, making the pool if there is none. Inputs planned before add nothing.

    `handler` is the name of an installed one, such as "command" or "embed"; or a function that is
    called as `handler(work)` once per input, or a subclass of Handler. Workers find that again by
    its name, so it is defined at the top level of a file or of an installed module (see
    `fsqueue.python_file.handler`; there, too, what `setup` does); `options` are then what it finds
    in `work.options`, with `suffix` for how the names of the outputs end.

    `inputs` are files, directories (`recursive`: and those below) or `@FILE`, as on the command
    line; `options` are the handler's own, by name (`fsqueue plan HANDLER --help` lists them), and
    the rest take their defaults. `gpus` and `weights` are what --gpus and --weight take. `per_gpu`
    is how many workers will share each GPU and its memory. `claim_seconds` is how long a claim
    should take on an RTX 3090, where inputs can be cut. An attempt that takes longer than
    `timeout_s` fails (0: it may take any time). Claims of a higher `priority` (0 to 9) are taken
    first. `retry_requires` is a capability that workers must have for a claim that failed for lack
    of memory. `lease_s` (30) and `attempts_max` (3) are for a new pool; those of a pool that exists
    cannot be changed.

    Returns what was planned; inputs that could not be planned are in its `bad`, one line each.
    Raises UsageError for wrong options, and NotSupportedError for a file system that cannot hold a
    pool.
    """
    from fsqueue.gpu.capability import planned_gpu
    from fsqueue.maintenance.doctor import refuse_unfit
    from fsqueue.python_file.code import refuse_while_loading
    from fsqueue.scheduling.inputs import find_inputs
    from fsqueue.scheduling.planner import PlanRequest, choose_spools, plan_into, preview

    refuse_while_loading("fsqueue.plan")
    root = os.fspath(pool)
    if not isinstance(handler, str):
        options = _options_for_code(handler, options or {})
        handler = "python"
    made = load_handler(handler)
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    found = find_inputs([os.fspath(path) for path in inputs], recursive=recursive)
    if not found.paths and not found.broken:
        left_out = f" ({'; '.join(found.notes)})" if found.notes else ""
        raise UsageError(f"no INPUT was given{left_out}. See: fsqueue plan {handler} --help")
    if not claim_seconds > 0:
        raise UsageError("--claim-seconds must be more than 0; 60 to 120 are sensible.")
    if not 0 <= timeout_s < math.inf:
        raise UsageError(f"--timeout {timeout_s} is not a number of seconds, 0 or more.")
    if not 1 <= per_gpu <= PER_GPU_MAX:
        raise UsageError(f"--per-gpu {per_gpu}: must be from 1 to {PER_GPU_MAX}.")
    if priority not in range(PRIORITY_MAX + 1):
        raise UsageError(f"--priority {priority}: must be 0 to {PRIORITY_MAX}; higher goes first.")
    tier = None if min_tier is None else tier_named(min_tier)
    settings.refuse_bad_settings(lease_s, attempts_max)
    existing = open_pool(root) if os.path.lexists(os.path.join(root, "pool.json")) else None
    if existing is not None:
        settings.refuse_other_settings(existing, lease_s, attempts_max)
    spools = choose_spools(existing, gpus, weights)
    known = [planned_gpu(spool.model, spool.memory_gib) for spool in spools]
    prepared = made.prepare(made.for_gpus(complete_options(made, options or {}), known))
    request = PlanRequest(
        made,
        prepared,
        found.paths,
        spools,
        gpu_weighted,
        claim_seconds,
        tier,
        requires,
        timeout_s,
        found.broken,
        [*made.describe(prepared), *found.notes],
        priority,
        retry_requires.lower(),
        per_gpu,
    )
    request.kind("x")  # refuses a bad word in `requires` before any input is read
    if dry_run:
        return preview(existing, request, progress=on_input)
    if existing is None:
        refuse_unfit(root)
    directory = settings.create_pool(
        root,
        lease_s=LEASE_S if lease_s is None else lease_s,
        attempts_max=ATTEMPTS_MAX if attempts_max is None else attempts_max,
    )
    # RACE: another planner may have made the pool meanwhile, with settings of its own.
    settings.refuse_other_settings(directory, lease_s, attempts_max)
    return plan_into(directory, request, progress=on_input)


def open_pool(root: str | os.PathLike[str]) -> Pool:
    """Open the pool at `root`. Raises UsageError if there is none, PoolError if it is damaged."""
    found = settings.open_pool(os.fspath(root))
    return Pool(found.root, found.id, found.lease_s, found.attempts_max)


class Pool(PoolDirectory):
    """An open pool: what `fsqueue run`, `wait`, `watch`, `status`, `retry`, ... do, as methods.

    It holds no resources and no state beside its path and settings; any number of them may be open
    anywhere, and pickling one is fine.
    """

    __slots__ = ()

    def run(
        self,
        workers: int | None = None,
        *,
        per_gpu: int | None = None,
        work_stealing: bool = True,
        steal_interval_s: float = 3.0,
        dashboard: bool | None = None,
        progress: bool = True,
        interval_s: float = 2.0,
        echo: Callable[[str], object] | None = None,
    ) -> int:
        """Start workers here, one per visible GPU or `workers` on the CPU, and wait until they end.

        `per_gpu` starts so many for each GPU, which share its memory and its spool; UsageError
        where no GPU is visible.

        Shows the live table on a terminal or in a notebook (`dashboard` None), else prints lines to
        `echo`: alerts, and a line with the ETA at each tenth of the work and every five minutes;
        with `dashboard` True every event, and a line per spool every ten seconds. Without
        `progress` it prints alerts and the totals at the end, and the workers log to files in
        events/ as they do below the table. Workers that break are logged. Keeps gpu_metrics.log and
        time_use.log. If this is the main thread, signals are relayed to the workers.

        Returns the exit status: 0 all done, 3 some claims failed, 5 work remains, 75 drained, 130
        and 143 stopped by a signal, 1 a worker broke.
        """
        from fsqueue.python_file.code import refuse_while_loading
        from fsqueue.worker.local_workers import LocalWorkers, local_environments, workers_here

        refuse_while_loading("Pool.run")
        environments = local_environments(self, workers, per_gpu)
        if there := workers_here(self):
            log.warning(
                "%s here already (process %s); this run starts its own beside them. To end those: "
                "kill %s",
                "a worker of this pool runs"
                if len(there) == 1
                else f"{len(there)} workers of this pool run",
                ", ".join(map(str, there)),
                " ".join(map(str, there)),
            )
        options = ["--work-stealing" if work_stealing else "--no-work-stealing"]
        options += ["--steal-interval", str(steal_interval_s)]
        live = _can_draw()
        drawn = progress and (live if dashboard is None else dashboard)
        local = LocalWorkers(self, environments, options, log_to_files=drawn or not progress)
        with local.relaying_signals():
            from fsqueue.metrics.log_file import MetricsLog, metrics_path, time_use_path
            from fsqueue.monitor.log_lines import Lines, States, follow  # while the workers start
            from fsqueue.monitor.snapshot import Reader

            reader = Reader(self)
            try:
                kept = MetricsLog(metrics_path(self), time_use_path(self))
                reader.on_snapshot.append(kept.keep)
            except OSError as error:
                log.warning("gpu_metrics.log cannot be kept: %s", error)
            done = lambda: local.finished  # noqa: E731
            try:
                if drawn and live:
                    from fsqueue.dashboard import show

                    show(self, until=done, interval_s=interval_s, reader=reader)
                else:
                    states = States.SPOOLS if drawn else States.PROGRESS
                    # Without a table the workers' own logs on stderr have every event already.
                    lines = Lines(events=drawn, states=states if progress else States.NOTHING)
                    follow(
                        self,
                        until=done,
                        interval_s=interval_s,
                        echo=echo or print,
                        reader=reader,
                        lines=lines,
                        sleep=local.pause,
                    )
            except Exception as error:
                # A closed terminal, a pipe without a reader, a pool that cannot be listed: what
                # cannot be shown ends no worker, and this process goes on looking after them (R9).
                log.warning("nothing more is shown here (%s); the workers go on", error)
            for ended in local.wait():
                log.warning("%s", ended)
        return local.exit_status(self.snapshot().exit_status)

    def work(self, options: WorkOptions | None = None) -> int:
        """Be one worker, in this process, until there is a reason to leave; return the exit status.

        Takes over SIGINT, SIGTERM and SIGUSR1 meanwhile: call it from the main thread.
        """
        from fsqueue.worker.launch import work

        return work(self, options)

    def snapshot(self) -> Snapshot:
        """Return what the pool looks like now: counts, spools, workers, alerts, speed, ETA."""
        from fsqueue.monitor.snapshot import Reader

        return Reader(self).snapshot()

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        interval_s: float = 2.0,
        on_snapshot: Callable[[Snapshot], object] | None = None,
        progress: bool = False,
    ) -> Snapshot:
        """Wait until nothing waits and nothing runs, or for `timeout_s`; return the last snapshot.

        Its `finished` and `exit_status` tell how it ended. `on_snapshot` is called at each look.
        `progress` shows a bar with the ETA: in a notebook, on a terminal (stderr), or elsewhere a
        line every half minute.
        """
        from fsqueue.monitor.log_lines import pause_s
        from fsqueue.monitor.snapshot import Reader

        reader = Reader(self)
        if on_snapshot is not None:
            reader.on_snapshot.append(on_snapshot)
        shown: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if progress:
            from fsqueue.dashboard.progress_bar import ProgressBar

            drawn = ProgressBar()
            reader.on_snapshot.append(drawn.show)
            shown = contextlib.closing(drawn)
        deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        with shown:
            while True:
                snapshot = reader.snapshot()
                left_s = deadline - time.monotonic()
                if snapshot.finished or left_s <= 0:
                    return snapshot
                time.sleep(min(pause_s(interval_s, snapshot), left_s))

    def watch(self, *, interval_s: float = 2.0) -> Snapshot:
        """Show the live table until everything is done, on a terminal or in a notebook.

        Elsewhere lines are printed. Ctrl-C (or interrupting the cell) ends the watching and nothing
        else.
        """
        from fsqueue.monitor.log_lines import follow

        if not _can_draw():
            return follow(self, interval_s=interval_s)
        from fsqueue.dashboard import show

        return show(self, interval_s=interval_s)

    def outputs(self, *, provenance: bool = False) -> Iterator[Output]:
        """Yield the output of every finished claim, plan by plan, in the order of the inputs.

        With `provenance`, each has what made it: host, GPU, versions, seconds, program. Handlers
        without outputs yield nothing; of an input that changed and was planned again, the outputs
        of its former version are left out. Raises UsageError if a plan's handler is not installed
        here.
        """
        from fsqueue.history.outputs import outputs

        return outputs(self, provenance=provenance)

    def link_outputs(self, directory: str | os.PathLike[str]) -> Linked:
        """Make `directory` hold every output under its input's name, as hard links.

        Nothing that is there is replaced; what is in the way is in the result.
        """
        from fsqueue.history.outputs import link_outputs

        return link_outputs(self, os.fspath(directory))

    def failed(self, matching: Matching | None = None) -> list[FailedClaim]:
        """Return the claims that failed (and match), with the errors of their attempts."""
        from fsqueue.history.failures import failed_claims
        from fsqueue.history.select import matches

        return [
            claim
            for claim in failed_claims(self)
            if not matching
            or matches(self, self.owned(State.FAILED, claim.name), claim.name, matching)
        ]

    def retry(
        self, ids: Sequence[str] = (), *, matching: Matching | None = None, dry_run: bool = False
    ) -> list[Retried]:
        """Put failed claims back into their spools: those named, or all; of those, what matches.

        `Matching(error="out of memory")` is an example (`fsqueue.Matching`).
        """
        from fsqueue.maintenance import repair

        if matching:
            ids = self._select([State.FAILED], matching, ids)
            if not ids:
                return []
        return repair.retry(self, ids, dry_run=dry_run)

    def forget(self, ids: Sequence[str], *, dry_run: bool = False) -> list[str]:
        """Give the named failed claims up for good; they no longer count as failed."""
        from fsqueue.maintenance import repair

        if not ids:
            raise UsageError("name the claims to forget.")
        return repair.forget(self, ids, dry_run=dry_run)

    def cancel(
        self, ids: Sequence[str] = (), *, matching: Matching | None = None, dry_run: bool = False
    ) -> Cancellation:
        """Cancel the claims that are named, or match; `retry` brings them back.

        See `cancel_all` for all of them.
        """
        from fsqueue.maintenance import repair

        if not ids and not matching:
            raise UsageError("name the claims to cancel, or use cancel_all.")
        if matching:
            ids = self._select([State.WAITING, State.RUNNING], matching, ids)
            if not ids:
                return repair.Cancellation((), ())
        return repair.cancel(self, ids, dry_run=dry_run)

    def cancel_all(self, *, dry_run: bool = False) -> Cancellation:
        """Cancel everything that waits or runs; `retry` brings it back."""
        from fsqueue.maintenance import repair

        return repair.cancel(self, dry_run=dry_run)

    def _select(self, states: Iterable[State], matching: Matching, ids: Sequence[str]) -> list[str]:
        from fsqueue.history.select import select

        return select(self, states, matching, ids)

    def drain(self, workers: Sequence[str] = (), *, order: Order = Order.DRAIN) -> None:
        """Order workers to finish their claim and leave: those named, or all, new ones included.

        `order` may be Order.STOP (put the claim back at once) or Order.PAUSE (take nothing more).
        """
        from fsqueue.maintenance import repair

        repair.drain(self, workers, order=order)

    def undo_drain(self, workers: Sequence[str] = ()) -> None:
        """Withdraw the orders given by `drain`."""
        from fsqueue.maintenance import repair

        repair.undo_drain(self, workers)

    def recover(self, *, on_wait: Callable[[int, float], object] | None = None) -> list[Recovered]:
        """Put back what dead workers hold, now; idle workers do it by themselves.

        Waits for up to a lease to be sure that a silent worker is dead; `on_wait` is called with
        the number of workers still watched and the seconds left.
        """
        from fsqueue.maintenance import repair

        return repair.recover(self, on_wait=on_wait)


# ---- parts ----


def _can_draw() -> bool:
    """Return whether a live table can be shown here; rich is imported only in notebooks."""
    if "ipykernel" in sys.modules:
        from fsqueue.dashboard import in_notebook

        return in_notebook()
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _options_for_code(code: Callable[..., object], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the handler `python` for a function and what it is given."""
    from fsqueue.python_file.from_python import options_of

    settings = {name: value for name, value in given.items() if name != "suffix"}
    try:
        words = tuple(f"{name}={json.dumps(value)}" for name, value in settings.items())
    except (TypeError, ValueError) as error:
        raise UsageError(f"the options must be JSON: {error}.") from error
    return {**options_of(code), "set": words, "suffix": given.get("suffix")}

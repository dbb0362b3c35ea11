"""Run a claim that is known to work once more, to find out whether this worker still can.

What it writes is thrown away: the claim stays where it is, and so does its output.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from fsqueue.errors import ClaimImpossible, NodeTrouble, WorkerBroken
from fsqueue.handler import Handler, Work
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import directories
from fsqueue.worker.attempts.path_map import PathMap
from fsqueue.worker.attempts.verdicts import Cause, Evidence, cause_of, verdict
from fsqueue.worker.handler_cache import require_output, run_handler
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.shutdown import Shutdown, StopNow, TookTooLong

log = logging.getLogger(__name__)

NOTHING: Final = Path()


class Found(Enum):
    """What a probe showed about this worker."""

    WORKS = auto()
    FAILS = auto()
    NOTHING = auto()  # no probe was possible


DEVICE_FAULTS: Final = frozenset({Cause.BROKEN, Cause.NODE_TROUBLE})
"""Endings that blame this process or its node, whichever claim is run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and how."""

    found: Found
    text: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What runs a claim of done/ again in this worker."""

    pool: PoolDirectory
    beat: Heartbeat
    shutdown: Shutdown
    handler_for: Callable[[str], Handler]
    path_map: PathMap = PathMap()

    def examine(
        self, candidates: Iterable[ClaimName], handler: Handler | None, options: Mapping[str, Any]
    ) -> Finding:
        """Run the first candidate that can be run; if there is none, the handler's self-test.

        `handler` and `options` are those of the claim that failed last.
        """
        for name in candidates:
            finding = self._run_again(name)
            if finding.found is not Found.NOTHING:
                return finding
        if handler is None or type(handler).selftest is Handler.selftest:
            return Finding(Found.NOTHING)
        try:
            with self.beat.handling(), self.shutdown.interruptible():
                handler.selftest(options)
        except (ClaimImpossible, NodeTrouble, WorkerBroken) as error:
            return Finding(Found.FAILS, f"the self-test of {handler.name} failed: {error}")
        except (StopNow, Exception) as error:
            log.debug("the self-test of %s showed nothing: %r", handler.name, error)
            return Finding(Found.NOTHING)
        return Finding(Found.WORKS, f"the self-test of {handler.name} passed")

    def _run_again(self, name: ClaimName) -> Finding:
        scratch = f"{self.pool.scratch(self.beat.status.worker_id)}/probe"
        try:
            claim = claims.read_claim(self.pool, name, patience_s=0.0, state=State.DONE)
            claim = self.path_map.claim(claim)
            handler = self.handler_for(claim.handler)
            may_run = claim.written_by_this_user or not handler.personal
            if not (may_run and all(map(os.path.exists, handler.inputs(claim.payload)))):
                return Finding(Found.NOTHING)
            directories.make_private(scratch)
            output = NOTHING
            if handler.suffix is not None:
                output = Path(f"{scratch}/{name.id}{claim.suffix or handler.suffix}")
            self._call(name, claim, handler, output, f"{scratch}/partial")
            if output != NOTHING:
                require_output(str(output), claim.handler)
        except (StopNow, TookTooLong, Exception) as error:
            cause = Cause.TIMED_OUT if isinstance(error, TookTooLong) else None
            cause = cause or cause_of(error, running=True)
            blames = verdict(cause).evidence is Evidence.AGAINST or cause in DEVICE_FAULTS
            if isinstance(error, StopNow) or not blames:
                log.debug("running %s again showed nothing: %r", name.id, error)
                return Finding(Found.NOTHING)
            return Finding(Found.FAILS, f"{name.id}, which is done, fails here too: {error}")
        finally:
            directories.discard(scratch)
        return Finding(Found.WORKS, f"{name.id}, which is done, works here")

    def _call(
        self, name: ClaimName, claim: claims.Claim, handler: Handler, output: Path, partial: str
    ) -> None:
        work = Work(
            id=name.id,
            kind=base_of(name.kind),
            cost=name.cost,
            attempt=name.attempt,
            payload=claim.payload,
            options=claim.options,
            output=output,
            partial=partial,
            is_stopping=lambda: self.shutdown.interruption() is not None,
            report=lambda done, total, measures: None,
            warn=lambda text: log.info("%s: %s", name.id, text),
            timeout_s=claim.timeout_s,
            worker=self.beat.status.worker_id,
            code=self.pool.code(),
        )
        timeout_s = 0.0 if handler.ends_in_time else claim.timeout_s
        with self.beat.handling(timeout_s), self.shutdown.interruptible(timeout_s):
            run_handler(handler, work)

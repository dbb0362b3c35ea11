"""The built-in jobs of `fsqueue broadcast`: warmup, selftest, evict, drain.

Each is a handler that acts on the worker it runs in. Any other job is run by the installed handler
of that name, with the job's data as payload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from fsqueue.errors import ClaimImpossible, NotSupportedError, UsageError
from fsqueue.handler import Handler, Work
from fsqueue.pool import plans
from fsqueue.pool.layout import Order
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic


class Job(Handler):
    """A built-in job. `handlers` are those the worker has loaded; `load` returns one by name."""

    suffix: str | None = None

    def __init__(
        self,
        pool: PoolDirectory,
        worker: str,
        handlers: Mapping[str, Handler],
        load: Callable[[str], Handler],
    ) -> None:
        self.pool = pool
        self.worker = worker
        self.handlers = handlers
        self.load = load

    def targets(self, work: Work) -> Iterator[tuple[Handler, Mapping[str, Any]]]:
        """Yield the job's targets: the handler it names, else those of the pool's plans."""
        named, options = work.payload.get("handler"), work.payload.get("options")
        seen: list[tuple[str, Mapping[str, Any]]] = []
        for plan in reversed(plans.read_plans(self.pool)):
            if named in (None, plan.handler) and (plan.handler, plan.options) not in seen:
                seen.append((plan.handler, plan.options))
        try:
            if isinstance(named, str) and (isinstance(options, dict) or not seen):
                seen = [(named, self._completed(named, options or {}))]
            for name, given in seen:
                yield self.load(name), given
        except (UsageError, NotSupportedError) as error:
            raise ClaimImpossible(str(error)) from error

    def _completed(self, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check and complete options that were typed by hand, as planning does."""
        handler = self.load(name)
        for option in handler.options:
            if option.required and given.get(option.name) is None:
                raise UsageError(f'"options" in --job-data lack {option.name!r}: {option.help}.')
        return handler.prepare({o.name: o.default for o in handler.options} | dict(given))


class Warmup(Job):
    """Load what planned claims need."""

    def run(self, work: Work) -> None:
        """Warm up every target."""
        for handler, options in self.targets(work):
            handler.warm(options)


class SelfTest(Job):
    """Check that handlers give the known result for a known input on this worker."""

    suffix = ".json"

    def run(self, work: Work) -> None:
        """Write the result of each target's own test; ClaimImpossible if one does not pass."""
        found: dict[str, Any] = {}
        for handler, options in self.targets(work):
            result = handler.selftest(options)
            key = handler.name
            if key in found:
                key = f"{key} {result.get('kind', len(found))}"
            found[key] = result
        work.output.write_text(json.dumps({"worker": self.worker, "handlers": found}, indent=1))


class Evict(Job):
    """Release everything that is loaded."""

    def run(self, work: Work) -> None:
        """Close every handler; each loads again when it is needed."""
        for handler in self.handlers.values():
            handler.close()


class Drain(Job):
    """Finish the current claim, and leave."""

    def run(self, work: Work) -> None:
        """Order this worker to leave."""
        atomic.publish(self.pool.order(Order.DRAIN, self.worker), b"")


JOBS: Final[dict[str, type[Job]]] = {
    "warmup": Warmup,
    "selftest": SelfTest,
    "evict": Evict,
    "drain": Drain,
}

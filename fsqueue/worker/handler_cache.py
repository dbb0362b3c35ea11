"""A worker's handlers: load each once, and know what it likes and can do with what they hold."""

from __future__ import annotations

import os

from fsqueue.errors import ClaimFailed
from fsqueue.handler import Handler, Work, load_handler
from fsqueue.pool.journal import Journal
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.scheduling.choose import Preferences
from fsqueue.worker.heartbeat import Heartbeat
from fsqueue.worker.settings import WorkerSettings


class HandlerCache:
    """The handlers of one worker, and how its claims went with them."""

    def __init__(self, settings: WorkerSettings, beat: Heartbeat, journal: Journal) -> None:
        self.handlers: dict[str, Handler] = {}
        self._habits = settings
        self._beat = beat
        self._journal = journal
        self._healthy: set[str] = set()
        self._unable: set[str] = set()
        self._failed: set[str] = set()
        self._loaded: list[str] = []
        self._taste: Preferences | None = None

    def handler(self, name: str) -> Handler:
        """Return a handler, importing it when it is first needed."""
        if name not in self.handlers:
            self._beat.change(state="loading")
            self.handlers[name] = load_handler(name)
            self.handlers[name].models_max = self._habits.models_max
            self.handlers[name].beside = self.handler  # type: ignore[method-assign]
        return self.handlers[name]

    def did(self, name: ClaimName) -> None:
        """Note that a claim was done."""
        base = base_of(name.kind)
        if base not in self._healthy:
            self._healthy.add(base)
            self._taste = None

    def failed(self, name: ClaimName) -> None:
        """Note that a claim failed here."""
        self._healthy.discard(base_of(name.kind))
        self._failed.add(name.id)
        self._taste = None

    def cannot(self, kind: str) -> None:
        """Note that claims of a kind cannot be done here."""
        self._unable.add(kind)
        self._taste = None

    def preferences(self) -> Preferences:
        """Return what the worker would rather do now: the same as before if nothing changed."""
        loaded = [kind for handler in self.handlers.values() for kind in handler.loaded()]
        if self._taste is None or loaded != self._loaded:
            self._loaded = loaded
            self._report(frozenset(loaded))
            self._taste = Preferences(
                loaded=frozenset(loaded),
                healthy=frozenset(self._healthy),
                unable=frozenset(self._unable),
                failed_here=frozenset(self._failed),
                special=self._habits.specialization,
                tier=self._habits.tier,
                capabilities=self._habits.capabilities,
            )
        return self._taste

    def _report(self, loaded: frozenset[str]) -> None:
        """Tell what came and went."""
        status = self._beat.status
        for kind in sorted(loaded.difference(status.loaded)):
            self._journal.write("loaded", kind=kind)
        for kind in sorted(set(status.loaded) - loaded):
            self._journal.write("evicted", kind=kind)
        with self._beat.lock:
            status.loaded, status.unable = sorted(loaded), sorted(self._unable)

    def close(self) -> None:
        """Let every handler go of everything."""
        for handler in self.handlers.values():
            handler.close()


def run_handler(handler: Handler, work: Work) -> None:
    """Let a handler work, and let it end neither this process nor its being one.

    Let through, SystemExit would put the claim back uncharged, and end one worker after another.
    """
    me = os.getpid()
    try:
        handler.run(work)
    except SystemExit as error:
        raise ClaimFailed(f"the handler called sys.exit({error.code!r})") from error
    finally:
        if os.getpid() != me:
            os._exit(1)  # a child that the handler forked came back: one worker is enough

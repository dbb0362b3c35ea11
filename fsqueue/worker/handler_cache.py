"""Keep a worker's handlers loaded, and know what it prefers and can do with what they hold."""

from __future__ import annotations

import logging
import os
import stat

from fsqueue.errors import ClaimFailed
from fsqueue.handler import Handler, Work, load_handler
from fsqueue.pool.names import ClaimName
from fsqueue.pool.requirements import base_of
from fsqueue.records.journal import EventKind, Journal
from fsqueue.records.status import WorkerState
from fsqueue.scheduling.choose import Preferences
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.settings import WorkerSettings

log = logging.getLogger(__name__)


class HandlerCache:
    """The handlers of one worker, and how its claims went with them."""

    def __init__(self, settings: WorkerSettings, beat: Heartbeat, journal: Journal) -> None:
        self.handlers: dict[str, Handler] = {}
        self._settings = settings
        self._beat = beat
        self._journal = journal
        self._healthy: set[str] = set()
        self._unable: set[str] = set()
        self._failed: set[str] = set()
        self._left: set[str] = set()
        self._loaded: list[str] = []
        self._preferences: Preferences | None = None

    def handler(self, name: str) -> Handler:
        """Return a handler, importing it when it is first needed."""
        if name not in self.handlers:
            self._beat.change(lambda status: status.become(WorkerState.LOADING))
            handler = load_handler(name)
            handler.attach(self.handler, models_max=self._settings.models_max)
            self.handlers[name] = handler
        return self.handlers[name]

    def note_done(self, name: ClaimName) -> None:
        """Note that a claim was done."""
        base = base_of(name.kind)
        if base not in self._healthy:
            self._healthy.add(base)
            self._preferences = None

    def note_failed(self, name: ClaimName) -> None:
        """Note that a claim failed here."""
        self._healthy.discard(base_of(name.kind))
        self._failed.add(name.id)
        self._preferences = None

    def note_unable(self, kind: str) -> None:
        """Note that claims of a kind cannot be done here."""
        self._unable.add(kind)
        self._preferences = None

    def note_left(self, id: str) -> None:
        """Note that one claim is left to other workers."""
        self._left.add(id)
        self._preferences = None

    def reload(self, name: str) -> None:
        """Drop a handler whose run was interrupted in the middle; it is made anew when needed."""
        handler = self.handlers.pop(name, None)
        if handler is not None:
            _close(handler)
            self._preferences = None

    def preferences(self) -> Preferences:
        """Return what this worker prefers to do now: the same object if nothing changed."""
        loaded = [kind for handler in self.handlers.values() for kind in handler.loaded()]
        if self._preferences is None or loaded != self._loaded:
            self._loaded = loaded
            self._report(frozenset(loaded))
            self._preferences = Preferences(
                loaded=frozenset(loaded),
                healthy=frozenset(self._healthy),
                unable=frozenset(self._unable),
                failed_here=frozenset(self._failed),
                left=frozenset(self._left),
                special=self._settings.specialization,
                tier=self._settings.tier,
                capabilities=self._settings.capabilities,
            )
        return self._preferences

    def _report(self, loaded: frozenset[str]) -> None:
        """Report what was loaded and evicted since the last report."""
        status = self._beat.status
        for kind in sorted(loaded.difference(status.loaded)):
            self._journal.write(EventKind.LOADED, kind=kind)
        for kind in sorted(set(status.loaded) - loaded):
            self._journal.write(EventKind.EVICTED, kind=kind)
        unable = sorted(self._unable)
        self._beat.change(lambda status: status.note_loaded(sorted(loaded), unable))

    def close(self) -> None:
        """Release everything that the handlers hold."""
        for handler in self.handlers.values():
            _close(handler)


def _close(handler: Handler) -> None:
    try:
        handler.close()
    except Exception as error:  # a user's code, and the worker has nothing left to lose by it
        log.warning("the handler %r could not be closed: %s", handler.name, error)


def require_output(path: str, handler: str) -> None:
    """Raise ClaimFailed if a handler wrote no output; OSError if that cannot be found out.

    `os.path.isfile` would take an error of the mount for a file that is not there, and so charge
    it to the claim (R1).
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return
    except (FileNotFoundError, NotADirectoryError):
        pass  # RACE: it may also be that a worker which declared this one dead removed it
    raise ClaimFailed(f"the handler {handler!r} returned without writing its output")


def run_handler(handler: Handler, work: Work) -> None:
    """Run a handler so that it can neither end this process nor leave a second one running.

    A SystemExit that got through would put the claim back uncharged, and end one worker after
    another.
    """
    pid = os.getpid()
    try:
        handler.set_up()
        handler.run(work)
    except SystemExit as error:
        raise ClaimFailed(f"the handler called sys.exit({error.code!r})") from error
    finally:
        if os.getpid() != pid:
            os._exit(1)  # a child that the handler forked returned; it must not go on as a worker

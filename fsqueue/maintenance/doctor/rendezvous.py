"""Two processes on two hosts meet in a directory, and exchange messages by publishing files.

Each is present through a file whose name carries a beat, like a worker's lease, so that a file left
by a killed process is not taken for a partner: only a process that beats is there. Each names the
other once it has seen it beat; two that named each other have met. From then on every message is
one file, published whole, and found by listing.

    DIR/.fsqueue-doctor-meeting/ID.b000007          ID is here
    DIR/.fsqueue-doctor-meeting/ID.WORD             a message from ID
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

from fsqueue.errors import PoolError
from fsqueue.pool.names import LeaseName
from fsqueue.storage import atomic, directories
from fsqueue.storage.untrusted import read_json

log = logging.getLogger(__name__)
T = TypeVar("T")

MEETING: Final = ".fsqueue-doctor-meeting"
POLL_S: Final = 0.002
POLL_S_MAX: Final = 0.05
BEAT_S: Final = 0.2


class Rendezvous:
    """One side of a rendezvous. Call `meet` first; `close` removes its files."""

    def __init__(self, directory: str, me: str, *, patience_s: float) -> None:
        self.directory = f"{directory}/{MEETING}"
        self.me = me
        self.other = ""
        self._patience_s = patience_s
        self._beat = LeaseName(me, beat=0)
        self._beaten = -1e9

    def meet(self, facts: dict[str, Any], *, wait_s: float) -> dict[str, Any]:
        """Wait for another host; return its facts. Raises PoolError if none comes."""
        directories.make(self.directory)
        atomic.publish(f"{self.directory}/{self._beat}", b"", durable=False)
        self.other = self._wait(
            self._beating(),
            wait_s,
            f"no other host came to {self.directory}; start the same command on another host: "
            f"fsqueue doctor DIR --peer",
        )
        self.send("met", facts | {"whom": self.other})
        found = self.receive("met")
        if found.get("whom") != self.me:
            raise PoolError(
                f"{self.other} met {found.get('whom')} in {self.directory} instead of this host: "
                f"more than two came at once. Try again with two."
            )
        return found

    @property
    def leads(self) -> bool:
        """Whether this is the side that begins."""
        return self.me < self.other

    def send(self, word: str, facts: dict[str, Any] | None = None) -> None:
        """Publish a message."""
        data = json.dumps(facts or {}).encode()
        atomic.publish(f"{self.directory}/{self.me}.{word}", data, durable=False)

    def receive(
        self, word: str, *, meanwhile: Callable[[], object] | None = None
    ) -> dict[str, Any]:
        """Wait for a message from the other side; return its facts.

        Beating meanwhile also makes an NFS 3 client list anew (`Recovery.refresh_listings`).
        """
        name = f"{self.other}.{word}"

        def look() -> bool:
            self._beat_if_due()
            if meanwhile:
                meanwhile()
            return name in self.list()

        self._wait(
            look,
            self._patience_s,
            f"{self.other} fell silent in {self.directory}: it was stopped, or changes by one host "
            f"do not reach the other within {self._patience_s:.0f} s. Try again.",
        )
        return read_json(f"{self.directory}/{name}")

    def list(self) -> list[str]:
        """List the directory of the rendezvous."""
        return atomic.names(self.directory)

    def leave(self) -> None:
        """Stay until the other side has received everything, too."""
        self.send("bye")
        theirs = f"{self.other}."

        def gone() -> bool:
            self._beat_if_due()
            left = [name for name in self.list() if name.startswith(theirs)]
            return not left or f"{theirs}bye" in left

        self._wait(gone, self._patience_s, f"{self.other} did not finish. Try again.")

    def close(self) -> None:
        """Remove this side's files, and the directory if the other side has left, too."""
        try:
            for name in self.list():
                if name.startswith((f"{self.me}.", f"{self.me}-")):
                    atomic.discard(f"{self.directory}/{name}")
            directories.discard_empty(self.directory)
        except (OSError, PoolError) as error:
            log.debug("%s is left behind: %s", self.directory, error)

    # ---- parts ----

    def _beating(self) -> Callable[[], str]:
        """Return a function that finds a process whose beat has moved since its first call."""
        first: dict[str, int] = {}

        def look() -> str:
            self._beat_if_due()
            for text in self.list():
                name = LeaseName.parse(text)
                if name is None or name.worker == self.me or name.beat is None:
                    continue
                if first.setdefault(name.worker, name.beat) != name.beat:
                    return name.worker
            return ""

        return look

    def _beat_if_due(self) -> None:
        """Beat, if it is due."""
        if time.monotonic() - self._beaten < BEAT_S:
            return
        self._beaten = time.monotonic()
        following = replace(self._beat, beat=(self._beat.beat or 0) + 1)
        atomic.rename(f"{self.directory}/{self._beat}", f"{self.directory}/{following}")
        self._beat = following

    def _wait(self, look: Callable[[], T], wait_s: float, failure: str) -> T:
        begun = time.monotonic()
        pause_s = POLL_S
        while not (found := look()):
            if time.monotonic() - begun > wait_s:
                raise PoolError(failure)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.1, POLL_S_MAX)
        return found

"""Two processes on two hosts meet in a directory, and speak by publishing files.

Each shows itself by a file whose name carries a beat, as a worker's lease does, so that what a
killed process left behind is not taken for a partner: only who beats is there. Each names the other
once it has seen him beat; two who named each other have met. From then on every message is one
file, published whole, and found by listing.

    DIR/.fsqueue-doctor-meeting/ID.b000007          ID is here
    DIR/.fsqueue-doctor-meeting/ID.WORD             what ID has said
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
from fsqueue.pool.untrusted import read_json
from fsqueue.storage import atomic, directories

log = logging.getLogger(__name__)
T = TypeVar("T")

MEETING: Final = ".fsqueue-doctor-meeting"
POLL_S: Final = 0.002
POLL_S_MAX: Final = 0.05
BEAT_S: Final = 0.2


class Rendezvous:
    """One host's side of it. `meet` first; `close` removes what it left."""

    def __init__(self, directory: str, me: str, *, patience_s: float) -> None:
        self.directory = f"{directory}/{MEETING}"
        self.me = me
        self.other = ""
        self._patience_s = patience_s
        self._beat = LeaseName(me, beat=0)
        self._beaten = -1e9

    def meet(self, facts: dict[str, Any], *, wait_s: float) -> dict[str, Any]:
        """Wait for another host; return its facts. Raises PoolError if nobody comes."""
        directories.make(self.directory)
        atomic.publish(f"{self.directory}/{self._beat}", b"", durable=False)
        self.other = self._wait(
            self._beating(),
            wait_s,
            f"nobody came to meet in {self.directory}; start the same command on another host: "
            f"fsqueue doctor DIR --peer",
        )
        self.say("met", facts | {"whom": self.other})
        found = self.hear("met")
        if found.get("whom") != self.me:
            raise PoolError(
                f"{self.other} meets {found.get('whom')} in {self.directory}, not us: more than "
                f"two came at once. Try again with two."
            )
        return found

    @property
    def leads(self) -> bool:
        """Say whether this is the one of the two who begins."""
        return self.me < self.other

    def say(self, word: str, facts: dict[str, Any] | None = None) -> None:
        """Publish a message."""
        data = json.dumps(facts or {}).encode()
        atomic.publish(f"{self.directory}/{self.me}.{word}", data, durable=False)

    def hear(self, word: str, *, meanwhile: Callable[[], object] | None = None) -> dict[str, Any]:
        """Wait for the other's message; return what it says.

        Going on to beat is what makes an NFS 3 client list anew (`Recovery.refresh_listings`).
        """
        name = f"{self.other}.{word}"

        def look() -> bool:
            self._show()
            if meanwhile:
                meanwhile()
            return name in self.list()

        self._wait(
            look,
            self._patience_s,
            f"{self.other} fell silent in {self.directory}: it was stopped, or what one host "
            f"writes does not reach the other within {self._patience_s:.0f} s. Try again.",
        )
        return read_json(f"{self.directory}/{name}")

    def list(self) -> list[str]:
        """List the meeting's directory."""
        return atomic.names(self.directory)

    def part(self) -> None:
        """Stay until the other, too, has heard all it wants to hear."""
        self.say("bye")
        theirs = f"{self.other}."

        def gone() -> bool:
            self._show()
            left = [name for name in self.list() if name.startswith(theirs)]
            return not left or f"{theirs}bye" in left

        self._wait(gone, self._patience_s, f"{self.other} did not say goodbye. Try again.")

    def close(self) -> None:
        """Remove what this side made, and the directory if the other has gone as well."""
        try:
            for name in self.list():
                if name.startswith((f"{self.me}.", f"{self.me}-")):
                    atomic.discard(f"{self.directory}/{name}")
            directories.discard_empty(self.directory)
        except (OSError, PoolError) as error:
            log.debug("%s is left behind: %s", self.directory, error)

    # ---- parts ----

    def _beating(self) -> Callable[[], str]:
        """Return a look that finds somebody whose beat has moved since the first look."""
        first: dict[str, int] = {}

        def look() -> str:
            self._show()
            for text in self.list():
                name = LeaseName.parse(text)
                if name is None or name.worker == self.me or name.beat is None:
                    continue
                if first.setdefault(name.worker, name.beat) != name.beat:
                    return name.worker
            return ""

        return look

    def _show(self) -> None:
        """Beat, if it is time."""
        if time.monotonic() - self._beaten < BEAT_S:
            return
        self._beaten = time.monotonic()
        following = replace(self._beat, beat=(self._beat.beat or 0) + 1)
        atomic.rename(f"{self.directory}/{self._beat}", f"{self.directory}/{following}")
        self._beat = following

    def _wait(self, look: Callable[[], T], wait_s: float, vain: str) -> T:
        begun = time.monotonic()
        pause_s = POLL_S
        while not (found := look()):
            if time.monotonic() - begun > wait_s:
                raise PoolError(vain)
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.1, POLL_S_MAX)
        return found

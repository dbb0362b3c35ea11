"""The real guardian, in a simulated process beside each worker.

`fsqueue.worker.liveness.guardian` needs a poll, a pipe and memory that two processes share. Here
the poll waits in simulated time, and the memory is the one that both have.
"""

from __future__ import annotations

from typing import Any, Final

from fsqueue.pool.leases import BEATS_PER_LEASE, Lease
from fsqueue.pool.names import LeaseName
from fsqueue.pool.proof_of_life import is_stopped
from fsqueue.pool.settings import PoolDirectory
from fsqueue.worker.liveness.guardian import IGNORED, Guardian
from fsqueue.worker.liveness.progress import Progress
from tests.sim.fake_os import SIM, SIM_TIME, SimEvent
from tests.sim.world import Process

STOP_S: Final = 10.0


class _SimGuardian(Guardian):
    """The real one. When it is late, it counts no more than a quarter of a lease (R10)."""

    def _tick(self) -> None:
        if SIM_TIME.monotonic() - self._ticked_at > self._pool.lease_s / BEATS_PER_LEASE:
            SIM.world.me.paused = True
        super()._tick()


class SimGuardianProcess:
    """A worker's guardian, seen from the worker."""

    def __init__(self, pool: PoolDirectory, lease: Lease) -> None:
        self.progress = Progress(clock=SIM_TIME.monotonic)
        self._pool = pool
        self._lease = lease
        self._woken = SimEvent()
        self._process: Process | None = None

    def start(self) -> None:
        """Start it."""
        me = SIM.world.me
        self.progress.reach(self._lease.name)
        name = self._lease.name

        def body(process: Process) -> int:
            process.handlers = {number: lambda *_: None for number in IGNORED}
            lease = Lease(self._pool, name.worker)
            lease.name = name
            _SimGuardian(self._pool, lease, self.progress, me.pid, self._woken).run()  # type: ignore[arg-type]
            return 0

        self._process = SIM.world.start(me.host, "guard", body)
        self._process.guards, me.guardian = me, self._process

    def wake(self) -> None:
        """Let it look at once."""
        self._woken.set()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def has_ended(self) -> bool:
        """Return whether it has ended, or was never started."""
        return self._process is None or not self._process.alive

    def end_if_stopped(self, silent_s: float) -> None:
        """End it if it is stopped, and has not ticked for so long."""
        ticked = self.progress.ticked
        if ticked and SIM_TIME.monotonic() - ticked > silent_s and is_stopped(self.pid):
            self._kill()

    def stop(self) -> LeaseName:
        """End it; return the beat that the lease has reached."""
        if self._process is not None:
            if self.progress.ticked:
                self.progress.ask_to_stop()
                self.wake()
                SIM.world.sleep(STOP_S, self.has_ended)
            self._kill()
        return self.progress.beat_of(self._lease.name.worker)

    def _kill(self) -> None:
        if self._process is not None and self._process.alive:
            self._process.excuses.add("dead")
            SIM.world.end(self._process)


class SimPoll:
    """`select.poll`, which here only waits."""

    def __init__(self) -> None:
        self._woken = SimEvent()

    def register(self, what: Any, flags: int) -> None:
        self._woken = what

    def poll(self, milliseconds: float) -> list[Any]:
        """Wait; what woke it need not be read."""
        self._woken.wait(milliseconds / 1000)
        self._woken.clear()
        return []


def end_children_of(worker: str) -> None:
    """End what a dead worker's handlers left behind."""
    head = SIM.world.me.guards
    for child in head.children if head is not None else ():
        if child.alive:
            SIM.world.end(child)

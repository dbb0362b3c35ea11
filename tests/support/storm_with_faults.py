"""A storm with faults: not only SIGKILL, but everything else that happens to workers and disks.

On an ext4 of its own, while workers are killed and replaced as in any storm: some are stopped for
longer than their lease and go on as zombies, the kernel's OOM killer ends some, the wall clock
jumps by hours both ways, the directories of half-written outputs are deleted, and the disk is full,
has no inodes left, turns read-only, or is lost with all that was not synced.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fsqueue.pool.settings import PoolDirectory
from tests.support.cgroups import Group, control_group
from tests.support.clocks.hosts import preload
from tests.support.mounts import Disk, ext4
from tests.support.processes import Running, wait_for
from tests.support.storm import Storm, StormSettings

REASONS = (
    "No space left on device",
    "Read-only file system",
    "Input/output error",
    "was declared dead by",
    "3 different claims failed here in a row",
)
"""What a worker may log that leaves with status 1."""
ERRORS = (
    "exited with status",
    "did not write {output}",
    "No such file or directory",
    "No space left",
)
"""What a failed attempt's record may hold: a program found the disk full, or its directory gone."""
MEMORY = 450 << 20
HOG = "held = []\nwhile True: held.append(b'x' * (8 << 20))"
"""Uses all the memory of a group; the kernel kills workers, whose oom_score is higher."""


def faulty_settings(seed: int, *, lasts_s: float) -> StormSettings:
    """Return a storm in which a lease passes often."""
    return StormSettings(seed, lasts_s=lasts_s, kill_every_s=0.7, pause_max_s=0.4, lease_s=2.0)


class StormWithFaults(Storm):
    """One pool on one disk, and every fault."""

    def __init__(
        self, directory: Path, settings: StormSettings, disk: Disk, group: Group | None
    ) -> None:
        self._relief_at = 0.0
        self._shift = directory / "shift"
        self._shift.write_bytes(bytes(8))
        super().__init__(directory, settings, root=disk.path / "pool")
        self.tally.expected = ERRORS
        self._disk = disk
        self._group = group
        self._frozen: list[tuple[float, Running]] = []
        self._due: list[tuple[float, float, Callable[[], None]]] = []
        for number, (every_s, harm) in enumerate(
            [
                (1.5, self._freeze),
                (1.0, self._jump),
                (2.0, self._delete_a_scratch_directory),
                (6.0, self._use_up_memory),
                (9.0, self._harm_the_disk),
            ]
        ):
            self._due.append((time.monotonic() + 2.0 + number, every_s, harm))
        self._disk_harms = [
            self._fill,
            self._use_up_inodes,
            self._turn_read_only,
            self._lose_the_disk,
        ]
        self._chance.shuffle(self._disk_harms)

    # ---- in place of a plain storm's ----

    def _is_enough(self) -> bool:
        harm = self.tally.harm
        disk = ("disk full", "no inodes", "read-only", "disk lost")
        return (
            all(harm[kind] for kind in ("pauses", "clock jumps", "scratch directories deleted"))
            and any(harm[kind] for kind in disk)
            and super()._is_enough()
        )

    def _environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(preload()), "CLOCK_SHIFT_FILE": str(self._shift)}

    def _start(self) -> Running:
        worker = super()._start()
        if self._group is not None:
            self._group.take(worker.pid)
            Path(f"/proc/{worker.pid}/oom_score_adj").write_text("1000")
        return worker

    def _plan(self, count: int) -> PoolDirectory:
        self._relieve()
        return super()._plan(count)

    def _relieve(self) -> None:
        if self.full:
            self._disk.relieve()
            self._relief_at = 0.0

    def _fill_up(self) -> None:
        for worker in [worker for worker in self._workers if worker.ended()]:
            self._workers.remove(worker)
            self._look_at_its_end(worker)
        if not self.full:
            super()._fill_up()

    def _kill_one(self) -> None:
        now = time.monotonic()
        if now >= self._relief_at:
            self._relieve()
        for thaw_at, worker in list(self._frozen):
            if now >= thaw_at:
                self._thaw(thaw_at, worker)
        for at, every_s, harm in list(self._due):
            if now >= at and self._workers:
                self._due.remove((at, every_s, harm))
                self._due.append((now + self._chance.uniform(0.5, 1.5) * every_s, every_s, harm))
                harm()
        super()._kill_one()

    @property
    def full(self) -> bool:
        """Whether there is no room on the disk just now."""
        return bool(self._relief_at)

    def _finish(self) -> None:
        self._relieve()
        for thaw_at, worker in list(self._frozen):
            self._thaw(thaw_at, worker)
        for worker in self._workers:
            worker.reap(deadline_s=180)
            self._look_at_its_end(worker)
        self._workers = [self._start()]
        super()._finish()

    def end(self) -> None:
        """Leave no process behind, whatever went wrong."""
        for worker in [*self._workers, *(worker for _, worker in self._frozen)]:
            worker.kill()

    # ---- what ended ----

    def _look_at_its_end(self, worker: Running) -> None:
        status, log, tally = worker.reap(), worker.log, self.tally
        if "Traceback" in log:
            tally.problems.append(f"a worker left with a traceback:\n{log}")
        elif status == -signal.SIGKILL:
            tally.harm["oom kills"] += 1
        elif status == 1 and any(reason in log for reason in REASONS):
            tally.harm["zombies"] += "was declared dead by" in log
            tally.harm["stopped by the disk"] += "was declared dead by" not in log
        elif status not in (0, 3, 5):
            tally.problems.append(f"a worker left with {status}:\n{log}")

    # ---- what is done to workers ----

    def _freeze(self) -> None:
        worker = self._workers.pop(self._chance.randrange(len(self._workers)))
        worker.send(signal.SIGSTOP)
        self.tally.harm["pauses"] += 1
        lease_s = self.settings.lease_s
        self._frozen.append((time.monotonic() + self._chance.uniform(0.5, 2.5) * lease_s, worker))

    def _thaw(self, thaw_at: float, worker: Running) -> None:
        self._frozen.remove((thaw_at, worker))
        if not worker.ended():
            worker.thaw()
        self._workers.append(worker)

    def _jump(self) -> None:
        """Move every worker's wall clock to anywhere within half a day of the true time."""
        with open(self._shift, "r+b", buffering=0) as file:  # in place: the workers have it mapped
            file.write(struct.pack("q", self._chance.randint(-43200, 43200)))
        self.tally.harm["clock jumps"] += 1

    def _delete_a_scratch_directory(self) -> None:
        directory = self.pool.directory("outputs")
        found = sorted(name for name in os.listdir(directory) if name.startswith("."))
        if found:
            # By one rename: a program that opens its output again must not find half of it gone.
            doomed = self._disk.path / "doomed"
            with suppress(OSError):
                os.rename(f"{directory}/{self._chance.choice(found)}", doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self.tally.harm["scratch directories deleted"] += 1

    def _use_up_memory(self) -> None:
        if self._group is None:
            return
        hog = subprocess.Popen([sys.executable, "-c", HOG], preexec_fn=self._group.enter)
        try:
            all_of_them = [*self._workers, *(worker for _, worker in self._frozen)]
            wait_for(lambda: any(worker.ended() for worker in all_of_them), "an OOM kill")
        finally:
            hog.kill()
            hog.wait()

    # ---- what is done to the disk ----

    def _harm_the_disk(self) -> None:
        if not self.full:
            self._disk_harms.append(self._disk_harms.pop(0))
            self._disk_harms[-1]()

    def _fill(self) -> None:
        self._disk.fill()
        self._fills_up("disk full")

    def _use_up_inodes(self) -> None:
        self._disk.use_up_inodes()
        self._fills_up("no inodes")

    def _fills_up(self, kind: str) -> None:
        self.tally.harm[kind] += 1
        self._relief_at = time.monotonic() + self._chance.uniform(0.5, 2.0)

    def _turn_read_only(self) -> None:
        self._disk.meet_an_error()
        self._repair("read-only")

    def _lose_the_disk(self) -> None:
        self._disk.break_down()
        self._repair("disk lost")
        self.witness.forget_the_lost()

    def _repair(self, kind: str) -> None:
        """Wait until every worker has left, kill the stopped ones, and repair the disk."""
        self.tally.harm[kind] += 1
        for worker in self._workers:
            worker.reap(deadline_s=60)
            self._look_at_its_end(worker)
        for _, worker in self._frozen:
            worker.kill()
            self.tally.kills += 1
        self._workers, self._frozen = [], []
        self._disk.repair()


@contextmanager
def faulty_storm(directory: Path, settings: StormSettings) -> Iterator[StormWithFaults]:
    """Make a disk, a control group if there can be one, and a storm on them."""
    with ExitStack() as stack:
        # Large enough that only the faults fill it, never what a long storm leaves behind.
        size_mib, inodes = max(96, int(settings.lasts_s)), max(6000, int(150 * settings.lasts_s))
        disk = stack.enter_context(ext4(directory / "disk", size_mib=size_mib, inodes=inodes))
        group: Group | None = None
        with suppress(OSError):
            group = stack.enter_context(control_group("memory", MEMORY))
        storm = StormWithFaults(directory, settings, disk, group)
        try:
            yield storm
        finally:
            storm.end()

"""What `claims.py` runs against fsqueue: other queues without a server, through their own words.

    peers.py QUEUE DIRECTORY fill N        put N claims that do nothing
    peers.py QUEUE DIRECTORY drain         print "ready", wait for a line, drain the queue

`drain` prints how many claims it did, and its CPU and wall seconds, as JSON. It runs in one process
for each worker, in its own environment with what peers.txt names; `two-renames` is the bound,
and `read+journal` that with what any queue that keeps its claims in files and a log must do more.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any


def nothing(number: int = 0) -> None:
    """Do the work of one claim."""


class TwoRenames:
    """One listing of the worker's own spool, kept till it is used up; two renames a claim."""

    reads = False

    def __init__(self, directory: str, spool: int, spools: int) -> None:
        self.root, self.spool, self.spools = directory, spool, spools

    def fill(self, count: int) -> None:
        for name in ("running", "done"):
            os.makedirs(f"{self.root}/{name}", exist_ok=True)
        for spool in range(self.spools):
            os.makedirs(f"{self.root}/{spool}")
        for number in range(count):
            path = f"{self.root}/{number % self.spools}/noop-{number:07d}.noop.c{1 + number % 97}"
            with open(f"{path}.a0.r0", "wb") as file:
                file.write(b'{"id":"noop-%07d","handler":"noop","payload":{}}' % number)

    def drain(self) -> int:
        count, owner = 0, f"host-{os.getpid()}-abcdef"
        log = os.open(f"{self.root}/{owner}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for name in sorted(os.listdir(f"{self.root}/{self.spool}")):
            running = f"{self.root}/running/{name}@{owner}"
            os.rename(f"{self.root}/{self.spool}/{name}", running)
            if self.reads:
                os.write(log, b'{"t":1764000000.123,"event":"took","id":"%s"}\n' % name.encode())
                fd = os.open(running, os.O_RDONLY)
                json.loads(os.read(fd, os.fstat(fd).st_size + 1))
                os.close(fd)
            os.rename(running, f"{self.root}/done/{name}@{owner}")
            if self.reads:
                os.write(log, b'{"t":1764000000.123,"event":"done","id":"%s"}\n' % name.encode())
            count += 1
        return count


class ReadAndJournal(TwoRenames):
    reads = True


class Dirq:
    def __init__(self, directory: str, *_: int) -> None:
        from dirq.QueueSimple import QueueSimple

        self.queue = QueueSimple(directory)

    def fill(self, count: int) -> None:
        for number in range(count):
            self.queue.add(f"claim {number}")

    def drain(self) -> int:
        count, name = 0, self.queue.first()
        while name:
            if self.queue.lock(name):
                self.queue.get(name)
                self.queue.remove(name)
                count += 1
            name = self.queue.next()
        return count


class Jug:
    """jug's locks and results, in the order in which `jug execute` uses them."""

    def __init__(self, directory: str, *_: int) -> None:
        from jug.backends.file_store import file_store

        self.store, self.root = file_store(f"{directory}/store"), directory

    def fill(self, count: int) -> None:
        with open(f"{self.root}/names", "w") as file:
            file.writelines(f"{number:040x}\n" for number in range(count))

    def drain(self) -> int:
        count = 0
        with open(f"{self.root}/names", "rb") as file:
            names = file.read().split()
        for name in names:
            if self.store.can_load(name):
                continue
            lock = self.store.getlock(name)
            if lock.get():
                try:
                    if not self.store.can_load(name):
                        self.store.dump(None, name)
                        count += 1
                finally:
                    lock.release()
        return count


class Huey:
    def __init__(self, directory: str, *_: int) -> None:
        self.huey = self.make(directory)
        self.task = self.huey.task()(nothing)

    def make(self, directory: str):
        from huey import FileHuey

        return FileHuey(path=f"{directory}/huey")

    def fill(self, count: int) -> None:
        for number in range(count):
            self.task(number)

    def drain(self) -> int:
        count = 0
        while (task := self.huey.dequeue()) is not None:
            self.huey.execute(task)
            count += 1
        return count


class HueySqlite(Huey):
    synced: bool | None = None  # SQLite's default, which syncs every change

    def make(self, directory: str):
        from huey import SqliteHuey

        # Its own patience is 5 s, which four processes on a busy disk use up.
        return SqliteHuey(filename=f"{directory}/huey.db", fsync=self.synced, timeout=60)


class HueyUnsynced(HueySqlite):
    """What a power cut may take back, as it may a rename."""

    synced = False


class Litequeue:
    def __init__(self, directory: str, *_: int) -> None:
        from litequeue import LiteQueue

        self.queue = patiently(lambda: LiteQueue(f"{directory}/queue.db"))

    def fill(self, count: int) -> None:
        for number in range(count):
            self.queue.put(str(number))

    def drain(self) -> int:
        count = 0
        while (message := patiently(self.queue.pop)) is not None:
            patiently(partial(self.queue.done, message.message_id))
            count += 1
        return count


def patiently(act: Callable[[], Any]) -> Any:
    """Do it again while the database is locked: litequeue, with four processes, gives up."""
    for _ in range(1_000):
        try:
            return act()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            time.sleep(0.005)
    return act()


class PersistQueue:
    def __init__(self, directory: str, *_: int) -> None:
        from persistqueue import SQLiteAckQueue

        self.queue = SQLiteAckQueue(f"{directory}/queue", auto_resume=False)

    def fill(self, count: int) -> None:
        for number in range(count):
            self.queue.put(number)

    def drain(self) -> int:
        from persistqueue.exceptions import Empty

        count = 0
        while True:
            try:
                self.queue.ack(self.queue.get(block=False))
            except Empty:
                return count
            count += 1


class TaskQueue:
    def __init__(self, directory: str, *_: int) -> None:
        from taskqueue import TaskQueue, queueable

        self.noop = queueable(nothing)
        self.queue = TaskQueue(f"fq://{directory}/queue")

    def fill(self, count: int) -> None:
        self.queue.insert((partial(self.noop, number) for number in range(count)), total=count)

    def drain(self) -> int:
        from taskqueue import QueueEmptyError

        count = 0
        while True:
            try:
                task = self.queue.lease(seconds=600)
            except QueueEmptyError:
                return count
            task.execute()
            self.queue.delete(task)
            count += 1


QUEUES = {
    "two-renames": TwoRenames,
    "read+journal": ReadAndJournal,
    "dirq.QueueSimple": Dirq,
    "jug file_store": Jug,
    "huey file": Huey,
    "huey sqlite": HueySqlite,
    "huey sqlite, unsynced": HueyUnsynced,
    "litequeue": Litequeue,
    "persistqueue ack": PersistQueue,
    "task-queue fq": TaskQueue,
}

KILLED = {
    "two-renames": "stays in running/",
    "read+journal": "stays in running/",
    "dirq.QueueSimple": "locked until purged",
    "jug file_store": "locked until cleaned up",
    "huey file": "lost",
    "huey sqlite": "lost",
    "huey sqlite, unsynced": "lost",
    "litequeue": "locked for good",
    "persistqueue ack": "until resumed",
    "task-queue fq": "back after a lease",
}
"""What becomes of the claim that a worker held when it was killed."""


def measured(drain: Iterable[int] | object) -> Iterator[str]:
    """Yield "ready"; then, after a line came, what draining took."""
    yield "ready"
    sys.stdin.readline()
    cpu, wall = time.process_time(), time.monotonic()
    count = drain()  # type: ignore[operator]
    took = {"claims": count, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
    yield json.dumps(took)


def main() -> None:
    """Do one verb for one queue."""
    name, directory, verb, *rest = sys.argv[1:]
    spool, spools = (int(text) for text in os.environ.get("SPOOL", "0/1").split("/"))
    queue = QUEUES[name](directory, spool, spools)
    if verb == "fill":
        queue.fill(int(rest[0]))
        return
    for line in measured(queue.drain):
        print(line, flush=True)


if __name__ == "__main__":
    main()

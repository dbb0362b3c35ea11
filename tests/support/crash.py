"""Stop a process at its n-th operation on the shared file system, for every n.

What this tests is a killed process: whatever it did before stays. It does not test a power loss,
which may take back what was not synced.

Only operations that change something are counted. A process stopped before a call that reads leaves
what it leaves when stopped before the next change. A write that is stopped has written half.
"""

from __future__ import annotations

import gc
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import pytest

from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.storage import atomic
from tests.support.interleave import Os

CHANGES = ("fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir")
CRASHED = 99

T = TypeVar("T")
R = TypeVar("R")


class CrashingOs(Os):
    """An `os` at whose n-th change the process ends instead."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__(open=self._open, write=self._write)
        self.hooks |= dict.fromkeys(CHANGES, self._change)
        self.at = at
        self.count = 0

    def _due(self) -> bool:
        self.count += 1
        return self.count - 1 == self.at

    def _change(self, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self._due():
            os._exit(CRASHED)
        return real(*args, **options)

    def _open(self, real: Callable[..., int], path: str, flags: int, *rest: Any, **at: Any) -> int:
        if flags & os.O_CREAT and self._due():
            os._exit(CRASHED)
        return real(path, flags, *rest, **at)

    def _write(self, real: Callable[..., int], fd: int, data: bytes) -> int:
        if self._due():
            real(fd, data[: len(data) // 2])
            os._exit(CRASHED)
        return real(fd, data)


def crash(action: Callable[[], object], at: int) -> bool:
    """Run `action` in a child process that ends at change number `at`; return whether it got there.

    The child is reaped before this returns, so that any process can prove its death.
    """
    child = os.fork()
    if child == 0:
        _be_the_child(action, at)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, CRASHED), f"the child failed by itself, with status {code}: see its stderr"
    return code == CRASHED


def die_after(action: Callable[[], object]) -> None:
    """Run `action` in a child process that is killed when it is through, and reap it."""

    def act() -> None:
        action()
        os._exit(CRASHED)

    assert crash(act, -1)


def _be_the_child(action: Callable[[], object], at: int) -> NoReturn:
    try:
        gc.disable()  # it would touch every page that the child shares with its parent
        atomic.os = CrashingOs(at)  # type: ignore[attr-defined]
        action()
        os._exit(0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)


def copies(template: PoolDirectory) -> Callable[[int], PoolDirectory]:
    """Return a `prepare` for `every_crash` that copies a pool, with whatever state it is in."""

    def prepare(n: int) -> PoolDirectory:
        return open_pool(shutil.copytree(template.root, f"{template.root}-{n}"))

    return prepare


def every_crash(
    prepare: Callable[[int], T], action: Callable[[T], object]
) -> Iterator[tuple[int, T]]:
    """Yield (n, what `prepare` made) after `action` on it was stopped at its n-th change.

    Ends after the first n at which the action completes; that one is yielded too.
    """
    crashed, n = True, 0
    while crashed:
        subject = prepare(n)
        crashed = crash(lambda subject=subject: action(subject), n)  # type: ignore[misc]
        yield n, subject
        n += 1


def interrupted(
    prepare: Callable[[int], T], action: Callable[[T], R], other: Callable[[T], object]
) -> Iterator[tuple[int, T, R]]:
    """Yield (n, what `prepare` made, what `action` returned) after `other` acted before change n.

    Here nobody dies: `other` is done from beginning to end between two operations of `action`, for
    every n; the last time, after the end of `action`.
    """
    n, within = 0, True
    while within:
        subject = prepare(n)
        with pytest.MonkeyPatch.context() as patch:
            mount = _Interrupted(n, lambda subject=subject: other(subject))  # type: ignore[misc]
            patch.setattr(atomic, "os", mount)
            result = action(subject)
        within = mount.count > n
        if not within:
            other(subject)
        yield n, subject, result
        n += 1


class _Interrupted(CrashingOs):
    def __init__(self, at: int | None, act: Callable[[], object]) -> None:
        super().__init__(at)
        self._act = act
        self._acting = False

    def _due(self) -> bool:
        if not self._acting and (super()._due() or self.at is None):
            self._acting = True
            self._act()
            self._acting = False
        return False


def looking(action: Callable[[T], R], subject: T, look: Callable[[T], object]) -> R:
    """Do `action`, and look before each of its changes and after the last; looking must not change.

    Returns what `action` returned.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "os", _Interrupted(None, lambda: look(subject)))
        result = action(subject)
    look(subject)
    return result

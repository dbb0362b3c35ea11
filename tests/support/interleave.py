"""Order the steps of several threads, and hold a thread inside a system call.

    steps = Sequencer()
    # thread A                      # thread B
    with steps(0): ...
                                    with steps(1): ...
    with steps(2): ...

A test whose order is wrong fails at a deadline that names the missing step.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from fsqueue.storage import atomic

DEADLINE_S = 10.0


class Sequencer:
    """Let numbered blocks run one after another, whichever threads they are in."""

    def __init__(self) -> None:
        self._next = 0
        self._turn = threading.Condition()

    @contextmanager
    def __call__(self, step: int) -> Iterator[None]:
        with self._turn:
            if not self._turn.wait_for(lambda: self._next == step, DEADLINE_S):
                raise TimeoutError(f"step {step} never came: still at step {self._next}")
        try:
            yield
        finally:
            with self._turn:
                self._next += 1
                self._turn.notify_all()


class RandomTurns:
    """Let threads do one operation at a time, in a random order given by a seed."""

    def __init__(self, count: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._left = set(range(count))
        self._who = threading.local()
        self._turn = threading.Condition()
        self._next = self._random.randrange(count)

    def _pass_on(self) -> None:
        if self._left:
            self._next = self._random.choice(sorted(self._left))
        self._turn.notify_all()

    @contextmanager
    def taking_part(self, index: int) -> Iterator[None]:
        """Be thread `index` until the block ends; every thread must begin."""
        self._who.index = index
        try:
            yield
        finally:
            with self._turn:
                self._left.discard(index)
                self._pass_on()

    @contextmanager
    def mine(self) -> Iterator[None]:
        """Wait for this thread's turn, which ends with the block."""
        with self._turn:
            if not self._turn.wait_for(lambda: self._next == self._who.index, DEADLINE_S):
                raise TimeoutError(f"thread {self._next} does not take its turn")
            try:
                yield
            finally:
                self._pass_on()


def run_in_threads(*actions: Callable[[], Any]) -> list[Any]:
    """Run each action in its own thread; return the results, or raise the first error."""
    results: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = actions[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(actions))]
    for thread in threads:
        thread.start()
    for index, thread in enumerate(threads):
        thread.join(2 * DEADLINE_S)
        if thread.is_alive():
            errors.append(TimeoutError(f"action {index} did not end"))
    if errors:
        raise errors[0]
    return results


class FakeDirEntry:
    """What `os.scandir` yields, as far as it is used."""

    def __init__(self, name: str) -> None:
        self.name = name


class Os:
    """A fake `os` for fsqueue.storage.atomic: each call goes to its hook, if there is one.

    A hook gets the real function and the arguments. `scandir` goes to the hook of `listdir`, too.
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        self.hooks = hooks

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        hook = self.hooks.get(name)
        if name == "scandir" and "listdir" in self.hooks:
            return lambda where: nullcontext(map(FakeDirEntry, self.listdir(where)))
        return (lambda *args, **options: hook(real, *args, **options)) if hook else real


def interpose(patch: pytest.MonkeyPatch, **hooks: Callable[..., Any]) -> Os:
    """Put hooks under every operation that fsqueue does on the shared file system."""
    stand_in = Os(**hooks)
    patch.setattr(atomic, "os", stand_in)
    return stand_in


def reply_lost(errno: int, *, times: int = 1, only: str = "") -> Callable[..., Any]:
    """Return a hook that does the operation and then reports an error, as NFS can.

    It acts on the first `times` calls in which a path contains `only`.
    """
    left = [times]

    def hook(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = real(*args, **options)
        if left[0] and any(only in str(arg) for arg in args):
            left[0] -= 1
            raise OSError(errno, os.strerror(errno), *args[:1])
        return result

    return hook


def refused(errno: int, *, times: int = 10**9, only: str = "") -> Callable[..., Any]:
    """Return a hook that reports an error and does nothing; see `reply_lost`."""
    left = [times]

    def hook(real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if left[0] and any(only in str(arg) for arg in args):
            left[0] -= 1
            raise OSError(errno, os.strerror(errno), *args[:1])
        return real(*args, **options)

    return hook

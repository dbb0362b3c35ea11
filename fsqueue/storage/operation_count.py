"""Count this process's metadata operations on shared file systems.

A metadata operation is a system call that names a file, or asks what a name or directory is: what a
file server has to answer. Workers limit them (--max-metadata-ops) and report them in their status.
Two threads that count at once may lose one, which is good enough for a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class OperationCount:
    """The number of operations so far."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


operations: Final = OperationCount()


def costs(count: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Count that many operations at each call of the decorated function."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def counted(*args: P.args, **options: P.kwargs) -> T:
            operations.total += count
            return function(*args, **options)

        return counted

    return decorate

"""Spread a batch of GPU work over every GPU that can see one directory.

These are the public names: what a handler needs (see `fsqueue.handlers` for how to write one), and
what reads a pool for whoever puts its results together. `atomic` and `directories` are how a
handler keeps files of its own on a shared file system.
"""

from __future__ import annotations

from fsqueue import atomic, directories
from fsqueue.errors import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    FsqueueError,
    Interrupted,
    NotSupportedError,
    UsageError,
    WorkerBroken,
)
from fsqueue.handlers import Handler, Item, Option, Source, Work
from fsqueue.locks import host_lock
from fsqueue.reading import ClaimView, PlanView, PoolReader
from fsqueue.status import memory_available

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "ClaimFailed",
    "ClaimImpossible",
    "ClaimView",
    "FsqueueError",
    "Handler",
    "Interrupted",
    "Item",
    "NotSupportedError",
    "Option",
    "PlanView",
    "PoolReader",
    "Source",
    "UsageError",
    "Work",
    "WorkerBroken",
    "atomic",
    "directories",
    "host_lock",
    "memory_available",
]

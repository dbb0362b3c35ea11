"""Spread a batch of GPU work over every GPU that can see one directory.

These are the public names: what a handler needs (see `fsqueue.handlers` for how to write one), and
what reads a pool for whoever puts its results together. `atomic` and `directories` are how a
handler keeps files of its own on a shared file system.
"""

from __future__ import annotations

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
from fsqueue.handler import Handler, Item, Option, Source, Work
from fsqueue.pool.reader import ClaimView, PlanView, PoolReader
from fsqueue.pool.status import memory_available
from fsqueue.storage import atomic, directories
from fsqueue.storage.locks import host_lock

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

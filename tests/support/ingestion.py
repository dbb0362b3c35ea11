"""Run workers that ingest broadcast documents, in this process, one step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsqueue.broadcast import broadcast
from fsqueue.broadcast.broadcast import Broadcast, BroadcastRequest, Copy
from fsqueue.handler import Handler
from fsqueue.pool.inbox import Inbox
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import directories
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.worker import Worker


def start_worker(pool: PoolDirectory, **handlers: Handler) -> Worker:
    """Return a worker with a lease, which has these handlers already."""
    worker = Worker(pool, WorkerSettings(capabilities=frozenset({"embeddings"})))
    worker.handler_cache.handlers |= handlers
    worker.lease.enlist()
    directories.make(pool.scratch(worker.id))
    worker.beat.flush()
    return worker


def send(pool: PoolDirectory, data: Mapping[str, Any], **options: Any) -> Broadcast:
    """Broadcast documents."""
    return broadcast.broadcast(
        pool, BroadcastRequest("rag_ingestion", dict(data), "embeddings", **options)
    )


def run_inbox(worker: Worker) -> None:
    """Do everything that is addressed to a worker."""
    while (name := Inbox(worker.pool, worker.id).next()) is not None:
        worker._run_addressed(name)


def broadcast_to_new_worker(
    pool: PoolDirectory, data: Mapping[str, Any], **handlers: Handler
) -> Copy:
    """Let a new worker do a broadcast; return its copy."""
    worker = start_worker(pool, **handlers)
    made = send(pool, data)
    run_inbox(worker)
    broadcast.update_outcomes(pool, made.copies)
    worker._leave()
    return next(copy for copy in made.copies if copy.worker == worker.id)

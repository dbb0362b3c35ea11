"""Status files and journals: whatever they hold, the read-only commands work, one line per item."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from fsqueue.history.attempts import attempts
from fsqueue.history.trace import records
from fsqueue.metrics.log_file import metric_lines
from fsqueue.metrics.prometheus import exposition
from fsqueue.monitor.coordinator import WorkStealingCoordinator
from fsqueue.monitor.locate import find
from fsqueue.monitor.log_lines import counted, spool_line
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName, LeaseName
from fsqueue.records.journal import Journals, read_events
from fsqueue.records.status import heartbeat, read_status
from fsqueue.scheduling.choose import Peer, Preferences, choose
from fsqueue.scheduling.peers import living, peers, rates_of_likes
from fsqueue.scheduling.score import Candidate, Need, explain, rank
from tests.fuzz.sandbox import ME, is_usable, pick, pool, put, spool

WAITING = ClaimName("in-abc", "command", 9)
HELD = ClaimName("in-def", "command", 9, owner=ME)


def _status(data: bytes) -> None:
    _put_claims()
    put(pool().status(ME), data)
    status = read_status(pool(), ME)
    if status is not None:
        assert is_usable(status.weight) and all(map(is_usable, status.rates.values()))
        facts = asdict(status) | heartbeat(status)
        candidate = Candidate.read(facts)
        explain(candidate, Need("command"))
        rank([candidate], Need("command"))
        assert json.loads(json.dumps(facts, allow_nan=False))
    crew = peers(pool(), living(pool()))
    rates_of_likes(living(pool()), "cpu")
    chosen = choose({"gpu0": [WAITING]}, crew, Peer("me", spool="gpu0"), Preferences())
    assert chosen is None or chosen == ("gpu0", WAITING)
    find(pool(), WAITING.id)


def _displayed(data: bytes) -> None:
    _put_claims()
    put(pool().status(ME), data)
    snapshot = Reader(pool()).snapshot()
    lines = [spool_line(row, snapshot.unit) for row in snapshot.spools]
    lines += [counted(snapshot), *metric_lines(snapshot.spools, snapshot.taken_at)]
    lines += [str(asdict(row)) for row in snapshot.workers]
    assert all(line.isprintable() for line in lines), lines
    exposition(snapshot)
    coordinator = WorkStealingCoordinator(pool())
    json.dumps([coordinator.get_gpu_metrics(), coordinator.get_recent_steal_events()])
    coordinator.detect_stalled_workers(), coordinator.detect_imbalance()


def _journal(data: bytes) -> None:
    path = pool().events(ME)
    put(path, data)
    journals = Journals(pool())
    journals.look()
    speed = journals.speed(ME)
    if speed is not None:
        assert all(map(is_usable, (speed.claims, speed.cost, *speed.measures.values())))
    assert all(event.text.isprintable() for event in journals.events)
    assert all(steal.id.isprintable() and is_usable(steal.cost) for steal in journals.steals)
    for attempt in attempts(pool()):
        assert attempt.error.isprintable() and attempt.host.isprintable()
        assert is_usable(attempt.ended)
    json.dumps(list(records(attempts(pool()))), allow_nan=False)
    assert all(isinstance(event["event"], str) for event in read_events(path))
    find(pool(), "in-abc")


def _put_claims() -> None:
    put(pool().waiting(spool(), WAITING), b"{}")
    put(pool().owned(State.RUNNING, HELD), b"{}")
    put(pool().lease(LeaseName(ME, beat=1)), b"{}")


READERS: tuple[Callable[[bytes], None], ...] = (_status, _displayed, _journal)
_STATUS = (
    b'{"worker_id": "host-1-abcdef", "host": "h", "pid": 1, "state": "running", "spool": "gpu0", '
    b'"model": "cpu", "weight": 1.0, "tier": 1, "started": 1.0, "written_at": 2.0, "current": {"id"'
    b': "in-def", "kind": "command", "cost": 9, "attempt": 0, "spool": "gpu0", "started": 1.0, '
    b'"done": 1, "total": 2, "measures": {"tokens": 1}}, "rates": {"command": 1.0}, "loaded": ["a"]'
    b', "gpu": {"compute_percent": 50}, "slurm": {"slurm_job_id": "17"}, "stealing": true}'
)
SEEDS = (
    b"\x00" + _STATUS,
    b"\x01" + _STATUS,
    b'\x02{"t": 1.0, "event": "joined", "worker": "a", "host": "h", "spool": "gpu0"}\n'
    b'{"t": 2.0, "event": "took", "id": "in-abc", "kind": "command", "cost": 9, "attempt": 0}\n'
    b'{"t": 3.0, "event": "finished", "id": "in-abc", "cost": 9, "seconds": 1.0, "tokens": 3}\n'
    b'{"t": 4.0, "event": "stole", "id": "in-abc", "from": "gpu0", "to": "gpu1", "cost": 9}\n'
    b'{"t": 5.0, "event": "failed", "id": "in-abc", "error": "x", "returncode": -9}\n'
    b'{"t": 6.0, "event": "recovered", "id": "in-abc", "of": "b"}\n',
)


def run(data: bytes) -> None:
    """Let the first byte choose the reader of the rest."""
    chosen, data = pick(data, len(READERS))
    READERS[chosen](data)

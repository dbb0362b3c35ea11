"""Plan files: what was written is read back, and a damaged one is one PoolError."""

from __future__ import annotations

import os

from fsqueue.pool import plans
from fsqueue.pool.layout import SUFFIX
from fsqueue.pool.names import ID, SPOOL, ClaimName
from fsqueue.pool.plans import Plan, Share
from tests.fuzz.sandbox import pick, pool, put, typed_errors_only

SEEDS = (
    b'\x00{"format": 1, "plan": "3f9a", "created": "2026", "handler": "command", "kinds": ["c"], '
    b'"suffix": ".out", "total": {"claims": 1, "cost": 9, "measures": {"inputs": 1}}, "spools": '
    b'{"gpu0": {"claims": 1, "cost": 9, "measures": {}}}, "options": {},\n"sources":[\n["k", "/in"]'
    b'\n],\n"claims":[\n["in-abc.command.c9.a0.r0", "gpu0"]\n]}\n',
    b"\x01/in\xff\n\xc3\xa9\x00[]",
)


def run(data: bytes) -> None:
    """Read `data` as a plan; or write a plan of it and read that."""
    chosen, data = pick(data, 2)
    if chosen:
        return _round_trip(data)
    put(pool().plan(1), data)
    with typed_errors_only():
        head = plans.read_plan(pool(), 1)
        assert ID.fullmatch(head.uid)
        assert head.suffix is None or SUFFIX.fullmatch(head.suffix)
        assert isinstance(head.options, dict) and isinstance(head.handler, str)
        for share in (head.total, *head.spools.values()):
            assert type(share.claims) is int and type(share.cost) is int
            assert isinstance(share.measures, dict)
        assert all(map(SPOOL.fullmatch, head.spools))
        assert all(isinstance(key, str) for key in plans.read_sources(pool(), 1))
        assert all(isinstance(path, str) for path in plans.read_inputs(pool(), 1))
        for name, spool in plans.read_claims(pool(), 1):
            assert SPOOL.fullmatch(spool) and ClaimName.parse(str(name)) == name
    return None


def _round_trip(data: bytes) -> None:
    paths = [os.fsdecode(part) for part in data.split(b"\0")]
    total = Share(len(paths), 9, {"inputs": len(paths)})
    plan = Plan("3f9a", "2026", "command", ("command",), ".out", total, {"gpu0": total}, {})
    claim = "in-abc.command.c9.a0.r0"
    sources = [(f"key{index}", path) for index, path in enumerate(paths)]
    private = plans.write_plan(pool(), plan, sources, [(claim, "gpu0")] * len(paths))
    os.replace(private, pool().plan(1))
    assert plans.read_plan(pool(), 1) == plan
    assert list(plans.read_inputs(pool(), 1)) == paths
    assert [str(name) for name, _ in plans.read_claims(pool(), 1)] == [claim] * len(paths)

"""Names: what parses is formatted back to the same bytes, and no path leaves the pool."""

from __future__ import annotations

import os
from dataclasses import replace

from fsqueue.pool.layout import State
from fsqueue.pool.names import ID, WORKER, ClaimName, LeaseName, slug
from fsqueue.pool.requirements import base_of, conditions, lacks
from tests.fuzz.sandbox import pool

SEEDS = (
    b"output_12-5c1f09ab33.esm2_t6_8m.c81920.a0.r0@node7-31415-a3f9b2",
    b"a.b--t1-fp8.c1.a9999.r999999",
    b"node7-31415-a3f9b2.b000412",
    b"node7-31415-a3f9b2.dead@node8-1-b",
    b"node7-31415-a3f9b2.left",
    "é ü\u2028.fasta".encode(),
)


def run(data: bytes) -> None:
    """Parse `data` as every kind of name."""
    text = os.fsdecode(data)
    name = ClaimName.parse(text)
    if name is not None:
        _check_claim(name, text)
    lease = LeaseName.parse(text)
    if lease is not None:
        assert str(lease) == text
        inside(pool().lease(lease), "workers" if lease.living else "workers/ended")
    made = slug(text)
    assert ID.fullmatch(made) and len(made) <= 60, made
    assert slug(made) == made


def _check_claim(name: ClaimName, text: str) -> None:
    assert str(name) == text and len(text) <= 255 and text.isascii()
    assert not set("/\0\n") & set(text) and not text.startswith(".")
    base_of(name.kind), conditions(name.kind), lacks(name.kind, 2, ())
    if name.owner is not None:
        inside(pool().owned(State.RUNNING, name), "running")
        assert WORKER.fullmatch(name.owner)
    else:
        inside(pool().waiting("gpu0", name), "spools/gpu0")
        taken = name.owned_by("w" * 80)
        assert len(str(taken)) > 255 or ClaimName.parse(str(taken)) == taken
    for failed in () if name.is_spent else (False, True):
        back = name.returned(failed=failed)
        assert ClaimName.parse(str(back)) == back and back.returns > name.returns
        assert back != replace(name, owner=None)


def inside(path: str, directory: str) -> None:
    """Assert that `path` is directly in a directory of the pool."""
    assert os.path.normpath(path) == path
    assert os.path.dirname(path) == f"{pool().root}/{directory}", path

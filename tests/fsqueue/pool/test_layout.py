"""Paths: each is inside the pool, and none is made from unchecked text."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fsqueue.pool.layout import CHECKPOINT, DIRECTORIES, ORDER, SUFFIX, Layout, State
from fsqueue.pool.names import ClaimName, LeaseName

LAYOUT = Layout("/pool")
WAITING = ClaimName("x", "k", 1)
OWNED = ClaimName("x", "k", 1, owner="w")
BAD = ["..", "../x", "a/b", "", "x x", "x\n", "x\0", "/x"]

JOINS: dict[str, Callable[[str], str]] = {
    "directory": LAYOUT.directory,
    "spool": LAYOUT.spool,
    "spool_file": LAYOUT.spool_file,
    "spool_lock": LAYOUT.spool_lock,
    "waiting in": lambda text: LAYOUT.waiting(text, WAITING),
    "waiting id": lambda text: LAYOUT.waiting("gpu0", ClaimName(text, "k", 1)),
    "waiting kind": lambda text: LAYOUT.waiting("gpu0", ClaimName("x", text, 1)),
    "owned id": lambda text: LAYOUT.owned(State.DONE, ClaimName(text, "k", 1, owner="w")),
    "owner": lambda text: LAYOUT.owned(State.DONE, ClaimName("x", "k", 1, owner=text)),
    "staged plan": LAYOUT.staged,
    "staged spool": lambda text: LAYOUT.staged("3f9a", text or "/"),
    "lease": lambda text: LAYOUT.lease(LeaseName(text, 1)),
    "ender": lambda text: LAYOUT.lease(LeaseName("w", ended_by=text or "/")),
    "status": LAYOUT.status,
    "events": LAYOUT.events,
    "output": lambda text: LAYOUT.output(text, ".out"),
    "output suffix": lambda text: LAYOUT.output("x", text),
    "scratch": LAYOUT.scratch,
    "unpublished by": lambda text: LAYOUT.unpublished(text, "x", 0, ".out"),
    "unpublished": lambda text: LAYOUT.unpublished("w", text, 0, ".out"),
    "unpublished suffix": lambda text: LAYOUT.unpublished("w", "x", 0, text),
    "error": lambda text: LAYOUT.error(text, 0),
    "partial": LAYOUT.partial,
    "order": LAYOUT.order,
    "order's target": lambda text: LAYOUT.order("drain", text or "/"),
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("join", JOINS.values(), ids=JOINS.keys())
def test_unchecked_text_is_never_joined_to_a_path(join: Callable[[str], str], text: str) -> None:
    with pytest.raises(AssertionError):
        join(text)


def test_the_paths_are_those_of_the_drawing() -> None:
    assert LAYOUT.waiting("gpu0", WAITING) == "/pool/spools/gpu0/x.k.c1.a0.r0"
    assert LAYOUT.owned(State.RUNNING, OWNED) == "/pool/running/x.k.c1.a0.r0@w"
    assert LAYOUT.owned(State.DONE, OWNED) == "/pool/done/x.k.c1.a0.r0@w"
    assert LAYOUT.owned(State.FAILED, OWNED) == "/pool/failed/x.k.c1.a0.r0@w"
    assert LAYOUT.spool_file("gpu0") == "/pool/spools/gpu0.json"
    assert LAYOUT.spool_lock("gpu0") == "/pool/spools/gpu0.lock"
    assert LAYOUT.plan(7) == "/pool/plans/000007.json"
    assert LAYOUT.staged("3f9a", "gpu0") == "/pool/plans/3f9a.staged/gpu0"
    assert LAYOUT.lease(LeaseName("w", 412)) == "/pool/workers/w.b000412"
    assert LAYOUT.lease(LeaseName("w", ended_by="v")) == "/pool/workers/ended/w.dead@v"
    assert LAYOUT.lease(LeaseName("w")) == "/pool/workers/ended/w.left"
    assert LAYOUT.error("x", 2) == "/pool/errors/x.a2.json"
    assert LAYOUT.output("x", ".tsv.gz") == "/pool/outputs/x.tsv.gz"
    assert LAYOUT.unpublished("w", "x", 2, ".out") == "/pool/outputs/.w/x.r2.out"
    assert LAYOUT.order("cancel", "x") == "/pool/control/cancel@x"
    assert LAYOUT.order("drain") == "/pool/control/drain"


def test_a_claim_is_in_a_spool_exactly_if_it_has_no_owner() -> None:
    with pytest.raises(AssertionError):
        LAYOUT.owned(State.RUNNING, WAITING)
    with pytest.raises(AssertionError):
        LAYOUT.waiting("gpu0", OWNED)
    with pytest.raises(AssertionError):
        LAYOUT.owned(State.WAITING, OWNED)


def test_the_states_are_directories_of_the_pool() -> None:
    assert {state.value for state in State} <= set(DIRECTORIES)
    assert LAYOUT.state(State.WAITING) == LAYOUT.directory("spools")


@pytest.mark.parametrize("text", [".out", ".tsv.gz", ".a.b.c"])
def test_a_suffix_has_one_to_three_parts(text: str) -> None:
    assert SUFFIX.fullmatch(text)


@pytest.mark.parametrize("text", ["", "out", ".", "..", ".a.b.c.d", "./x", ".a/b", ".a\n", ".é"])
def test_an_invalid_suffix_is_refused(text: str) -> None:
    assert SUFFIX.fullmatch(text) is None


@pytest.mark.parametrize(
    "text", ["explode", "drain@", "drain@../x", "drain\n", "drain@a@b", "Drain"]
)
def test_an_invalid_order_is_refused(text: str) -> None:
    assert ORDER.fullmatch(text) is None


@pytest.mark.parametrize("text", ["..", ".hidden", "a/b", "", "x" * 101, "a\n"])
def test_an_invalid_checkpoint_name_is_refused(text: str) -> None:
    assert CHECKPOINT.fullmatch(text) is None

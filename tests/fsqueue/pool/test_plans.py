"""Plan files: numbered by one link, completed by any process, refused when damaged."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import PoolError
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.plans import Plan, Share
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.storage import atomic, directories
from tests.support.interleave import Sequencer, interpose, reply_lost, run_in_threads
from tests.support.pools import make_pool, names_in, plan, problems, stems


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def write(pool: PoolDirectory, uid: str, *ids: str) -> str:
    """Write a plan of these ids under its private name."""
    names = [(str(ClaimName(id, "k", 1)), "gpu0") for id in ids]
    head = Plan(uid, "2026-01-01", "trivial", ("k",), ".txt", Share(), {"gpu0": Share()}, {})
    return plans.write_plan(pool, head, [(f"key of {id}", f"/in/{id}") for id in ids], names)


# ---- numbers ----


def test_plans_are_numbered_from_one_and_listed_in_their_order(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.1")
    for stem in "bcdefghijk":
        plan(pool, f"{stem}.1")
    assert plans.numbers(pool) == list(range(1, 12))
    assert [p.total.claims for p in plans.read_plans(pool)] == [1] * 11


def test_other_names_among_the_plans_have_no_number(pool: PoolDirectory) -> None:
    for text in ("1.json", "000001.json.bak", ".000001.json", "٠٠٠٠٠١.json", "000001.txt"):
        Path(pool.directory("plans"), text).touch()
    assert plans.numbers(pool) == []


def test_of_two_plans_one_gets_the_number_and_the_other_stays_private(pool: PoolDirectory) -> None:
    first, second = write(pool, "aaa", "x"), write(pool, "bbb", "y")
    assert plans.number_plan(pool, "aaa", first, 1)
    assert not plans.number_plan(pool, "bbb", second, 1)
    assert plans.read_plan(pool, 1).uid == "aaa"
    assert os.path.exists(second) and not os.path.exists(first)
    assert plans.number_plan(pool, "bbb", second, 2)


@pytest.mark.parametrize("links_counted", [True, False])
def test_a_number_that_was_won_is_recognised_though_the_reply_was_lost(
    pool: PoolDirectory, links_counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = write(pool, "aaa", "x")
    mount = interpose(monkeypatch, link=reply_lost(errno.EEXIST))
    if not links_counted:

        def stat(real: Callable[..., os.stat_result], *args: Any, **how: Any) -> os.stat_result:
            facts = list(real(*args, **how))
            facts[3] = 1
            return os.stat_result(facts)

        mount.hooks["stat"] = stat
    assert plans.number_plan(pool, "aaa", private, 1)
    assert os.listdir(pool.directory("plans")) == ["000001.json"]


# ---- the file ----


def test_a_plan_is_read_as_it_was_written(pool: PoolDirectory) -> None:
    private = write(pool, "aaa", "x", "y")
    plans.number_plan(pool, "aaa", private, 1)
    head = plans.read_plan(pool, 1)
    assert (head.uid, head.handler, head.kinds, head.suffix) == ("aaa", "trivial", ("k",), ".txt")
    assert list(plans.read_sources(pool, 1)) == ["key of x", "key of y"]
    assert [(name.id, spool) for name, spool in plans.read_claims(pool, 1)] == [
        ("x", "gpu0"),
        ("y", "gpu0"),
    ]


def test_a_plan_is_one_json_document_with_a_claim_to_a_line(pool: PoolDirectory) -> None:
    text = Path(write(pool, "aaa", *(f"x{n}" for n in range(2500)))).read_text()
    assert len(json.loads(text)["claims"]) == len(json.loads(text)["sources"]) == 2500
    assert sum(line.startswith('["x') for line in text.splitlines()) == 2500


def test_an_empty_plan_is_a_document_too(pool: PoolDirectory) -> None:
    private = write(pool, "aaa")
    assert json.loads(Path(private).read_text())["claims"] == []
    plans.number_plan(pool, "aaa", private, 1)
    assert list(plans.read_claims(pool, 1)) == []


def test_an_input_with_any_name_can_be_planned(pool: PoolDirectory) -> None:
    path = os.fsdecode(b'/in/\xff "quoted"\n],\n"claims":[')
    head = Plan("aaa", "", "trivial", (), None, Share(), {}, {})
    private = plans.write_plan(pool, head, [("key", path)], [("x.k.c1.a0.r0", "gpu0")])
    plans.number_plan(pool, "aaa", private, 1)
    assert list(plans.read_sources(pool, 1)) == ["key"]
    assert len(list(plans.read_claims(pool, 1))) == 1


def test_a_full_disk_leaves_no_half_a_plan(
    pool: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_(real: Callable[[int, bytes], int], fd: int, data: bytes) -> int:
        real(fd, data[:10])
        raise OSError(errno.ENOSPC, "full")

    interpose(monkeypatch, write=write_)
    with pytest.raises(OSError, match="full"):
        write(pool, "aaa", "x")
    assert os.listdir(pool.directory("plans")) == []


HEADS = {
    "empty": b"",
    "half a line": b'{"format": 1, "pl',
    "no object": b"[1],\n",
    "another format": b'{"format": 99, "plan": "aaa"},\n',
    "no uid": b'{"format": 1},\n',
    "a uid that is a path": b'{"format": 1, "plan": "../aaa"},\n',
    "a uid that is a number": b'{"format": 1, "plan": 7},\n',
    "spools a list": b'{"format": 1, "plan": "aaa", "spools": []},\n',
    "a share of nonsense": b'{"format": 1, "plan": "aaa", "spools": {"gpu0": {"x": 1}}},\n',
    "not text": b"\xff\xfe\n",
    "deep nesting": b"[" * 100_000,
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS.keys())
def test_a_damaged_head_is_refused_by_name(pool: PoolDirectory, data: bytes) -> None:
    Path(pool.plan(1)).write_bytes(data)
    with pytest.raises(PoolError, match=r"is not a plan.*it was edited or damaged") as caught:
        plans.read_plan(pool, 1)
    assert pool.plan(1) in str(caught.value)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_plan_cut_after_any_line_is_refused_by_name(pool: PoolDirectory, cut: int) -> None:
    lines = Path(write(pool, "aaa", "x", "y")).read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    Path(pool.plan(1)).write_bytes(b"".join(lines[:cut]))
    with pytest.raises(PoolError, match=r"000001\.json ends in the middle"):
        list(plans.read_claims(pool, 1))
    with pytest.raises(PoolError):
        list(plans.read_sources(pool, 1))


@pytest.mark.parametrize(
    "row",
    ['["x.k.c1.a0.r0"]', '["x.k.c1.a0.r0", 7]', '["x.k.c1.a0.r0", "../gpu0"]', '["../x", "gpu0"]',
     '["x.k.c1.a0.r0", "gpu0", "more"]', "[", '[["x"], ["y"]]', "[]", "[" * 100_000],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_row_is_refused_by_name(pool: PoolDirectory, row: str) -> None:
    text = Path(write(pool, "aaa", "x")).read_text()
    Path(pool.plan(1)).write_text(text.replace('["x.k.c1.a0.r0", "gpu0"]', row))
    with pytest.raises(PoolError) as caught:
        list(plans.read_claims(pool, 1))
    assert pool.plan(1) in str(caught.value)


# ---- completing ----


def stage(pool: PoolDirectory, uid: str, *ids: str, number: int | None = 1) -> None:
    """Leave what a planner leaves that dies just before, or just after, it numbers its plan."""
    private = write(pool, uid, *ids)
    directories.make(pool.staged(uid))
    directories.make(pool.staged(uid, "gpu0"))
    for id in ids:
        name = ClaimName(id, "k", 1)
        claim = claims.Claim("trivial", "gpu0", {}, {}, {})
        atomic.stage(f"{pool.staged(uid, 'gpu0')}/{name}", [claim.encode(name)])
    if number is not None:
        assert plans.number_plan(pool, uid, private, number)


@pytest.fixture
def spooled(tmp_path: Path) -> PoolDirectory:
    """A pool that has its spool, and one claim done with."""
    pool = make_pool(tmp_path / "spooled")
    plan(pool, "zero.1")
    return pool


def test_any_process_completes_a_numbered_plan_and_leaves_no_staging(
    spooled: PoolDirectory,
) -> None:
    stage(spooled, "aaa", "x", "y", number=2)
    assert plans.complete(spooled) == 2
    assert plans.complete(spooled) == 0
    assert stems(spooled, State.WAITING) == ["x", "y", "zero"]
    assert sorted(os.listdir(spooled.directory("plans"))) == ["000001.json", "000002.json"]
    assert problems(spooled) == []


def test_a_plan_without_a_number_is_not_completed(spooled: PoolDirectory) -> None:
    stage(spooled, "aaa", "x", number=None)
    assert plans.complete(spooled) == 0
    assert stems(spooled, State.WAITING) == ["zero"]
    assert os.path.isdir(spooled.staged("aaa", "gpu0"))


def test_two_processes_completing_one_plan_move_each_claim_once(
    spooled: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take turns at every rename, and a claim that a worker takes meanwhile stays taken."""
    stage(spooled, "aaa", *"pqrstu", number=2)
    steps = Sequencer()
    turn = iter(range(1000))
    taken: list[ClaimName] = []

    def rename(real: Callable[[str, str], None], source: str, target: str) -> None:
        with steps(next(turn)):
            real(source, target)
            if len(taken) < 2:
                waiting = next(n for n in claims.waiting(spooled, "gpu0") if n.id != "zero")
                taken.append(waiting.owned_by("me-1-aaaaaa"))
                real(spooled.waiting("gpu0", waiting), spooled.owned(State.RUNNING, taken[-1]))

    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, rename=rename)
        run_in_threads(lambda: plans.complete(spooled), lambda: plans.complete(spooled))
    assert sorted(names_in(spooled, State.RUNNING), key=str) == sorted(taken, key=str)
    found = stems(spooled, State.WAITING, State.RUNNING)
    assert sorted(found) == [*"pqrstu", "zero"]
    assert problems(spooled) == []


def test_a_listing_that_misses_names_loses_no_claim(
    spooled: PoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers skip names while a directory changes."""
    stage(spooled, "aaa", "x", "y", "z", number=2)

    hidden: list[str] = []

    def listdir(real: Callable[..., list[str]], directory: int | str) -> list[str]:
        found = real(directory)
        if not hidden:
            hidden.extend(name for name in found if name.startswith("y."))
            return [name for name in found if name not in hidden]
        return found

    with pytest.MonkeyPatch.context() as patch:
        interpose(patch, listdir=listdir)
        assert plans.complete(spooled) == 2
    assert plans.complete(spooled) == 1
    assert stems(spooled, State.WAITING) == ["x", "y", "z", "zero"]
    assert problems(spooled) == []


def test_completing_a_plan_without_its_spool_raises_and_loses_nothing(
    spooled: PoolDirectory,
) -> None:
    stage(spooled, "aaa", "x", number=2)
    os.rename(spooled.spool("gpu0"), f"{spooled.root}/moved away")
    with pytest.raises(PoolError, match="gpu0 is not a directory"):
        plans.complete(spooled)
    os.rename(f"{spooled.root}/moved away", spooled.spool("gpu0"))
    assert plans.complete(spooled) == 1
    assert problems(spooled) == []


def test_other_names_in_staging_stay_where_they_are(spooled: PoolDirectory) -> None:
    stage(spooled, "aaa", "x", number=2)
    Path(spooled.staged("aaa", "gpu0"), "README").touch()
    assert plans.complete(spooled) == 1
    assert os.listdir(spooled.staged("aaa", "gpu0")) == ["README"]

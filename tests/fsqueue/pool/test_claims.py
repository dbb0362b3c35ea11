"""Every move of a claim: one rename, one winner, and a lost reply changes nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import ClaimLost, PoolError
from fsqueue.pool import claims
from fsqueue.pool.claims import Claim
from fsqueue.pool.layout import State
from fsqueue.pool.names import RETURNS_MAX, ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories
from tests.support.interleave import interpose, refused, reply_lost
from tests.support.pools import contents, make_pool, only_claim, problems, state_counts

ME, OTHER = "me-1-aaaaaa", "other-2-bbbbbb"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """A pool in which one claim of cost 3 waits in gpu0; gpu1 is empty."""
    return make_pool(tmp_path / "pool", "a.3", weights=(2.0, 1.0))


@pytest.fixture
def waiting(pool: PoolDirectory) -> ClaimName:
    return only_claim(pool, State.WAITING)


@pytest.fixture
def mine(pool: PoolDirectory, waiting: ClaimName) -> ClaimName:
    """The claim, taken by me."""
    taken = claims.take(pool, "gpu0", waiting, ME)
    assert taken is not None
    return taken


@pytest.fixture
def renames(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every rename from now on: source and target."""
    done: list[tuple[str, str]] = []

    def rename(real: Callable[[str, str], None], source: str, target: str) -> None:
        done.append((source, target))
        real(source, target)

    interpose(monkeypatch, rename=rename)
    return done


def errors_of(pool: PoolDirectory) -> dict[str, dict[str, Any]]:
    found = Path(pool.directory("errors")).iterdir()
    return {path.name.partition(".")[2]: json.loads(path.read_bytes()) for path in sorted(found)}


# ---- each transition ----


def test_taking_records_the_owner_in_the_same_rename(
    pool: PoolDirectory, waiting: ClaimName, renames: list[tuple[str, str]]
) -> None:
    mine = claims.take(pool, "gpu0", waiting, ME)
    assert mine == waiting.owned_by(ME)
    assert renames == [(pool.waiting("gpu0", waiting), pool.owned(State.RUNNING, mine))]
    assert state_counts(pool) == {"running": 1}


@pytest.mark.parametrize(
    ("move", "becomes", "place"),
    [
        (claims.finish, lambda name: name, State.DONE),
        (claims.fail, lambda name: name, State.FAILED),
        (
            lambda pool, name: claims.release(pool, name, "gpu1"),
            lambda name: name.returned(failed=False),
            State.WAITING,
        ),
        (
            lambda pool, name: claims.requeue(pool, name, "gpu1"),
            lambda name: name.returned(failed=True),
            State.WAITING,
        ),
    ],
    ids=["finish", "fail", "release", "requeue"],
)
def test_every_way_out_of_running_is_one_rename_and_keeps_the_bytes(
    pool: PoolDirectory,
    mine: ClaimName,
    renames: list[tuple[str, str]],
    move: Callable[[PoolDirectory, ClaimName], object],
    becomes: Callable[[ClaimName], ClaimName],
    place: State,
) -> None:
    before = Path(pool.owned(State.RUNNING, mine)).read_bytes()
    move(pool, mine)
    assert len(renames) == 1
    assert only_claim(pool, place) == becomes(mine)
    assert Path(renames[0][1]).read_bytes() == before
    assert problems(pool) == [] or place is State.DONE  # it has no output


def test_a_failed_claim_is_retried_in_a_fresh_round_under_a_fresh_name(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    claims.fail(pool, mine)
    back = claims.retry(pool, mine, "gpu0")
    assert back == ClaimName(mine.id, mine.kind, mine.cost, pool.attempts_max, 1)
    assert only_claim(pool, State.WAITING) == back
    assert claims.retry(pool, mine, "gpu0") == back, "it is there: as good as if we had moved it"
    claims.take(pool, "gpu0", back, OTHER)
    assert claims.retry(pool, mine, "gpu0") is None, "another process did, and it moved on"


def test_a_waiting_claim_is_cancelled_into_failed(pool: PoolDirectory, waiting: ClaimName) -> None:
    ended = claims.cancel(pool, "gpu0", waiting, ME)
    assert ended == waiting.owned_by(ME)
    assert only_claim(pool, State.FAILED) == ended


def test_a_claim_that_was_taken_first_is_not_cancelled(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    waiting = ClaimName(mine.id, mine.kind, mine.cost)
    assert claims.cancel(pool, "gpu0", waiting, OTHER) is None
    assert only_claim(pool, State.RUNNING) == mine


# ---- one winner ----


def test_of_two_takers_one_owns_the_claim_and_the_other_gets_none(
    pool: PoolDirectory, waiting: ClaimName
) -> None:
    assert claims.take(pool, "gpu0", waiting, ME) is not None
    assert claims.take(pool, "gpu0", waiting, OTHER) is None
    assert only_claim(pool, State.RUNNING).owner == ME


@pytest.mark.parametrize(
    "late",
    [
        claims.finish,
        claims.fail,
        lambda pool, name: claims.release(pool, name, "gpu1"),
        lambda pool, name: claims.charge(pool, name, "gpu1", {"error": "late"}, final=True),
    ],
    ids=["finish", "fail", "release", "charge"],
)
def test_a_late_move_raises_and_changes_nothing(
    pool: PoolDirectory, mine: ClaimName, late: Callable[[PoolDirectory, ClaimName], object]
) -> None:
    """The owner's lease was ended, and another worker owns the claim now."""
    claims.record_error(pool, mine, {"error": "worker lost"})
    back = claims.requeue(pool, mine, "gpu0")
    theirs = claims.take(pool, "gpu0", back, OTHER)
    before = contents(pool.root)
    with pytest.raises(ClaimLost, match="lease had lapsed"):
        late(pool, mine)
    assert contents(pool.root) == before
    assert only_claim(pool, State.RUNNING) == theirs


def test_a_late_finish_changes_nothing_even_when_the_claim_is_done_by_another(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    back = claims.requeue(pool, mine, "gpu0")
    theirs = claims.take(pool, "gpu0", back, OTHER)
    assert theirs is not None
    claims.finish(pool, theirs)
    with pytest.raises(ClaimLost):
        claims.finish(pool, mine)
    assert only_claim(pool, State.DONE) == theirs


def test_a_claim_may_come_back_to_its_own_worker_which_then_cannot_confuse_the_two_runs(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    again = claims.take(pool, "gpu0", claims.requeue(pool, mine, "gpu0"), ME)
    assert again is not None and again != mine
    with pytest.raises(ClaimLost):
        claims.finish(pool, mine)
    assert only_claim(pool, State.RUNNING) == again


# ---- replies that are lost ----


@pytest.mark.parametrize("number", sorted(atomic.GONE))
def test_a_take_that_was_done_is_won_whatever_the_file_system_answered(
    pool: PoolDirectory, waiting: ClaimName, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=reply_lost(number))
    assert claims.take(pool, "gpu0", waiting, ME) == waiting.owned_by(ME)


@pytest.mark.parametrize("number", sorted(atomic.GONE))
@pytest.mark.parametrize(
    ("move", "place"),
    [
        (claims.finish, State.DONE),
        (claims.fail, State.FAILED),
        (lambda pool, name: claims.release(pool, name, "gpu0"), State.WAITING),
        (lambda pool, name: claims.requeue(pool, name, "gpu0"), State.WAITING),
    ],
    ids=["finish", "fail", "release", "requeue"],
)
def test_a_move_that_was_done_is_recognised_though_its_reply_was_lost(
    pool: PoolDirectory,
    mine: ClaimName,
    number: int,
    move: Callable[[PoolDirectory, ClaimName], object],
    place: State,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interpose(monkeypatch, rename=reply_lost(number))
    move(pool, mine)
    assert only_claim(pool, place).id == mine.id


def test_a_lost_reply_is_settled_by_listing_alone(
    pool: PoolDirectory, waiting: ClaimName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename that failed may have left a cached "no such name" for its target."""
    interpose(
        monkeypatch,
        rename=reply_lost(errno.ENOENT),
        stat=refused(errno.ENOENT),
        lstat=refused(errno.ENOENT),
        access=refused(errno.ENOENT),
    )
    assert claims.take(pool, "gpu0", waiting, ME) is not None


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_other_errors_of_a_rename_are_raised(
    pool: PoolDirectory, waiting: ClaimName, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=refused(number))
    with pytest.raises(OSError) as caught:
        claims.take(pool, "gpu0", waiting, ME)
    assert caught.value.errno == number
    assert only_claim(pool, State.WAITING) == waiting


def test_a_rename_delivered_late_finds_nothing_to_act_on(
    pool: PoolDirectory, waiting: ClaimName
) -> None:
    """A network file system may deliver an old take after the claim came back and went on."""
    mine = claims.take(pool, "gpu0", waiting, ME)
    assert mine is not None
    back = claims.release(pool, mine, "gpu0")
    theirs = claims.take(pool, "gpu0", back, OTHER)
    with pytest.raises(FileNotFoundError):
        os.rename(pool.waiting("gpu0", waiting), pool.owned(State.RUNNING, mine))
    assert only_claim(pool, State.RUNNING) == theirs


def test_no_waiting_name_is_ever_used_twice(pool: PoolDirectory, waiting: ClaimName) -> None:
    used = [waiting]
    ways: list[Callable[[ClaimName], ClaimName | None]] = [
        lambda name: claims.release(pool, name, "gpu0"),
        lambda name: claims.requeue(pool, name, "gpu0"),
        lambda name: claims.fail(pool, name) or claims.retry(pool, name, "gpu0"),  # type: ignore[func-returns-value]
    ]
    for way in ways * 3:
        taken = claims.take(pool, "gpu0", used[-1], ME)
        assert taken is not None
        back = way(taken)
        assert back is not None
        used.append(back)
    ended = claims.cancel(pool, "gpu0", used[-1], ME)
    assert ended is not None
    back = claims.retry(pool, ended, "gpu0")
    assert back is not None
    assert len({*used, back}) == 11
    assert len({name.returns for name in [*used, back]}) == 11


# ---- attempts ----


def test_a_charge_keeps_the_record_and_puts_the_claim_back_until_its_last_attempt(
    pool: PoolDirectory, waiting: ClaimName
) -> None:
    name = waiting
    for attempt in range(3):
        taken = claims.take(pool, "gpu0", name, ME)
        assert taken is not None and taken.attempt == attempt
        name = claims.charge(pool, taken, "gpu0", {"error": f"reason {attempt}"})
    assert only_claim(pool, State.FAILED) == name
    records = errors_of(pool)
    assert list(records) == ["a0.json", "a1.json", "a2.json"]
    assert [record["error"] for record in records.values()] == ["reason 0", "reason 1", "reason 2"]
    assert {record["worker"] for record in records.values()} == {ME}


def test_a_final_charge_fails_the_claim_at_its_first_attempt(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    assert claims.charge(pool, mine, "gpu0", {"error": "impossible"}, final=True) == mine
    assert only_claim(pool, State.FAILED) == mine
    assert list(errors_of(pool)) == ["a0.json"]


def test_a_retry_starts_a_new_round_and_overwrites_no_record(
    pool: PoolDirectory, waiting: ClaimName
) -> None:
    name = waiting
    for attempt in range(6):
        taken = claims.take(pool, "gpu0", name, ME)
        assert taken is not None
        name = claims.charge(pool, taken, "gpu0", {"error": f"reason {attempt}"})
        assert (name.owner is not None) == (attempt in (2, 5))
        if attempt == 2:
            again = claims.retry(pool, name, "gpu0")
            assert again is not None
            name = again
    assert [r["error"] for r in errors_of(pool).values()] == [f"reason {n}" for n in range(6)]


def test_a_retry_opens_a_full_round_also_when_the_claim_failed_before_its_last_attempt(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    """It was impossible or cancelled; then an operator fixed the cause."""
    claims.charge(pool, mine, "gpu0", {"error": "impossible"}, final=True)
    back = claims.retry(pool, mine, "gpu0")
    for _ in range(2):
        assert back is not None
        taken = claims.take(pool, "gpu0", back, ME)
        assert taken is not None
        back = claims.charge(pool, taken, "gpu0", {"error": "bad luck"})
        assert back.owner is None, "three attempts in a round, and it has had fewer"


def test_the_record_of_an_attempt_is_written_before_the_claim_moves(
    pool: PoolDirectory, mine: ClaimName, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpose(monkeypatch, rename=refused(errno.EIO))
    with pytest.raises(OSError):
        claims.charge(pool, mine, "gpu0", {"error": "x"})
    assert list(errors_of(pool)) == ["a0.json"]
    assert only_claim(pool, State.RUNNING) == mine


def test_the_first_record_of_an_attempt_stands(pool: PoolDirectory, mine: ClaimName) -> None:
    claims.record_error(pool, mine, {"error": "first"})
    claims.record_error(pool, mine, {"error": "second"})
    assert errors_of(pool)["a0.json"]["error"] == "first"


def test_a_record_holds_whatever_a_handler_raised(pool: PoolDirectory, mine: ClaimName) -> None:
    claims.record_error(pool, mine, {"error": "\ud800\x1b[31m", "detail": Path("/x")})
    assert errors_of(pool)["a0.json"]["detail"] == "/x"


# ---- what is listed, what is read ----


def test_other_names_are_neither_listed_nor_touched(pool: PoolDirectory) -> None:
    strange = ["README", "x.k.c1.a0.r0@w", ".half", "x" * 200, "a\nb.k.c1.a0.r0"]
    for text in strange:
        Path(pool.spool("gpu0"), text).touch()
    Path(pool.state(State.DONE), "x.k.c1.a0.r0").touch()
    assert len(claims.waiting(pool, "gpu0")) == 1
    assert list(claims.owned(pool, State.DONE)) == []


def test_a_running_claim_holds_what_was_planned(pool: PoolDirectory, mine: ClaimName) -> None:
    claim = claims.read_claim(pool, mine)
    assert (claim.handler, claim.spool) == ("trivial", "gpu0")
    assert claim.payload == {"input": "a.3"}
    assert claim.measures == {"inputs": 1}


def test_a_claim_that_is_gone_when_it_is_read_was_lost(
    pool: PoolDirectory, mine: ClaimName
) -> None:
    claims.release(pool, mine, "gpu0")
    with pytest.raises(ClaimLost, match="is gone"):
        claims.read_claim(pool, mine, patience_s=0.0)


def whole(name: ClaimName) -> dict[str, Any]:
    return json.loads(Claim("trivial", "gpu0", {}, {"input": "a"}, {}).encode(name))  # type: ignore[no-any-return]


DAMAGE: dict[str, Callable[[ClaimName], bytes]] = {
    "empty": lambda name: b"",
    "truncated": lambda name: json.dumps(whole(name)).encode()[:-20],
    "no object": lambda name: b"[]",
    "another claim": lambda name: json.dumps(whole(name) | {"id": "other"}).encode(),
    "no handler": lambda name: json.dumps(whole(name) | {"handler": None}).encode(),
    "no spool": lambda name: json.dumps(whole(name) | {"spool": 7}).encode(),
    "options a list": lambda name: json.dumps(whole(name) | {"options": []}).encode(),
    "payload a text": lambda name: json.dumps(whole(name) | {"payload": "rm -rf"}).encode(),
    "deep nesting": lambda name: b'{"payload":' * 50_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_claim_is_refused_by_name(
    pool: PoolDirectory, mine: ClaimName, damage: Callable[[ClaimName], bytes]
) -> None:
    path = pool.owned(State.RUNNING, mine)
    Path(path).write_bytes(damage(mine))
    with pytest.raises(PoolError) as caught:
        claims.read_claim(pool, mine)
    assert path in str(caught.value)


def test_invalid_measures_are_left_out(pool: PoolDirectory, mine: ClaimName) -> None:
    Path(pool.owned(State.RUNNING, mine)).write_text(json.dumps(whole(mine) | {"measures": 7}))
    assert claims.read_claim(pool, mine).measures == {}


@pytest.mark.parametrize(
    "bad", [("../x", "k", 1), ("x", "", 1), ("x", "k", -1), ("x", "k", 10**18)]
)
def test_an_invalid_name_from_a_handler_raises(bad: tuple[str, str, int]) -> None:
    with pytest.raises(PoolError, match="bad id, kind or cost"):
        claims.waiting_name(*bad)


# ---- publishing ----


def test_a_staged_claim_is_published_once_by_whichever_process(pool: PoolDirectory) -> None:
    name = claims.waiting_name("b-1", "k", 1)
    directories.make(pool.staged("uid"))
    directories.make(pool.staged("uid", "gpu0"))
    atomic.stage(f"{pool.staged('uid', 'gpu0')}/{name}", [b"{}"])
    assert claims.publish(pool, "uid", "gpu0", name)
    assert claims.publish(pool, "uid", "gpu0", name), "it is there, as good as if we had moved it"
    assert claims.take(pool, "gpu0", name, ME) is not None
    assert not claims.publish(pool, "uid", "gpu0", name), "it has gone on: it must not come back"
    assert name not in claims.waiting(pool, "gpu0")


def test_a_claim_without_a_further_waiting_name_fails_and_stops_no_worker(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.3")
    (name,) = claims.waiting(pool, "gpu0")
    last = replace(name, returns=RETURNS_MAX)
    os.rename(pool.waiting("gpu0", name), pool.waiting("gpu0", last))
    taken = claims.take(pool, "gpu0", last, "w-1-a")
    assert taken is not None and taken.is_spent
    assert claims.release(pool, taken, "gpu0") == taken
    assert list(claims.owned(pool, State.FAILED)) == [taken]
    with pytest.raises(PoolError, match="no further waiting name is left"):
        claims.retry(pool, taken, "gpu0")

"""What waits in a spool: in the order of `choose.in_order`, whatever the taste, and in little."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fsqueue.pool.names import ClaimName
from fsqueue.scheduling import choose
from fsqueue.scheduling import waiting as waitlists
from fsqueue.scheduling.choose import Preferences, in_order
from fsqueue.scheduling.waiting import RUN, WaitingClaims
from fsqueue.storage import name_sets
from fsqueue.storage.name_sets import BLOCK

KINDS = ("esm2", "esm2--t1", "dna", "merge--t3")

names = some.builds(
    ClaimName, some.from_regex(r"[ab][ab-]{0,3}", fullmatch=True), some.sampled_from(KINDS),
    some.integers(0, 5), vain=some.sampled_from([0, 0, 1, 2]),
    priority=some.sampled_from([0, 0, 1, 9]),
)  # fmt: skip
some_kinds = some.frozensets(some.sampled_from(KINDS))
preferences = some.builds(
    Preferences, loaded=some_kinds, healthy=some_kinds, held=some_kinds, unable=some_kinds,
    tier=some.sampled_from([1, 2]),
)  # fmt: skip
listings = some.lists(names, unique_by=lambda name: name.id)


@pytest.fixture(autouse=True, params=[(RUN, BLOCK), (RUN, 3), (5, 2), (2, BLOCK)], ids=str)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and blocks so short that a few claims have many."""
    monkeypatch.setattr(waitlists, "RUN", request.param[0])
    monkeypatch.setattr(name_sets, "BLOCK", request.param[1])


def drained(waitlist: WaitingClaims) -> Iterator[ClaimName]:
    while waitlist:
        yield waitlist.pop()


@given(listings, preferences, some.frozensets(some.sampled_from(["a", "b", "ab"])))
def test_a_waitlist_has_the_order_of_the_policy(
    listing: list[ClaimName], preferences: Preferences, failed: frozenset[str]
) -> None:
    preferences = replace(preferences, failed_here=failed)
    wanted = in_order(listing, preferences)
    waitlist = WaitingClaims(map(str, listing), preferences)
    assert list(waitlist) == wanted
    assert list(reversed(waitlist)) == wanted[::-1]
    assert (len(waitlist), waitlist.all) == (len(wanted), len(listing))
    assert list(drained(waitlist)) == wanted[::-1]


@given(listings, preferences, preferences)
def test_another_taste_is_another_order_of_the_same(
    listing: list[ClaimName], before: Preferences, after: Preferences
) -> None:
    waitlist = WaitingClaims(map(str, listing), before)
    waitlist.apply(after)
    assert list(waitlist) == in_order(listing, after)


def test_what_failed_here_is_the_last_to_be_taken() -> None:
    preferences = Preferences(failed_here=frozenset({"b"}))
    waitlist = WaitingClaims(["a.k.c1.a0.r0", "b.k.c9.a1.r1", "c.k.c5.a0.r0"], preferences)
    assert [name.id for name in drained(waitlist)] == ["c", "a", "b"]


def test_what_is_no_waiting_claims_name_is_left_out() -> None:
    owned, wrong = "a.k.c1.a0.r0@w-1-a", "a.k.c01.a0.r0"
    assert WaitingClaims([owned, wrong, "a.k.c1", "gpu0.json", ""]).all == 0


@given(listings, some.data())
def test_a_name_that_was_struck_is_not_taken(
    listing: list[ClaimName], data: some.DataObject
) -> None:
    if listing:
        name = data.draw(some.sampled_from(listing))
        waitlist = WaitingClaims(map(str, listing))
        waitlist.remove(name)
        waitlist.remove(name)  # once more does nothing
        assert list(waitlist) == in_order((each for each in listing if each != name), Preferences())
        assert len(waitlist) == len(list(waitlist))


def test_the_best_of_nothing_is_an_error() -> None:
    with pytest.raises(IndexError):
        WaitingClaims().best()


@given(listings, some.floats(0.1, 10.0))
def test_claims_that_take_too_long_are_counted_by_their_kinds_rate(
    listing: list[ClaimName], left_s: float
) -> None:
    rates = {"esm2": 1.0, "dna": 0.5}
    late = [name for name in listing if choose.takes_too_long(name, rates, left_s)]
    assert WaitingClaims(map(str, listing)).count_too_long(rates, left_s) == len(late)


def test_no_name_is_taken_apart_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a listing of ten thousand, nor by another taste."""
    parsed: list[str] = []
    parse = ClaimName.parse
    monkeypatch.setattr(ClaimName, "parse", lambda text: (parsed.append(text), parse(text))[1])
    waitlist = WaitingClaims(f"x{number}.k.c{number}.a0.r0" for number in range(10_000))
    waitlist.apply(Preferences(loaded=frozenset({"k"})))
    assert not parsed
    assert waitlist.pop().cost == 9_999
    assert len(parsed) == 1


def test_a_claim_that_waits_takes_its_name_of_memory_and_little_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name of 43 letters is counted, too: as a `str` in a list it would be 100 bytes."""
    monkeypatch.setattr(waitlists, "RUN", 2000)
    monkeypatch.setattr(name_sets, "BLOCK", BLOCK)
    texts = (
        f"output_12-5c1f09ab{number:06d}.esm2_t6_8m.c{number}.a0.r0" for number in range(20_000)
    )
    tracemalloc.start()
    waitlist = WaitingClaims(texts)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(waitlist) == 20_000
    assert held < 20_000 * 55
    assert most < 20_000 * 55 + 2000 * 300, "what is sorted at a time"

"""What is counted of a directory of claims, by marks and costs."""

from __future__ import annotations

from fsqueue.monitor.counts import Amount, Listing, newest, waiting_mark


def listing_of(*texts: str, owned: bool = False) -> Listing:
    listing = Listing(owned=owned)
    listing.look(texts)
    return listing


def test_a_claim_seen_in_two_places_is_dropped_from_the_second() -> None:
    running = listing_of("a.k.c3.a0.r0@w-1-a", owned=True)
    waiting = listing_of("b.k.c5.a0.r0", "a.k.c3.a0.r0", "c.k.c7.a0.r0")
    twice, seen = {waiting_mark("a.k.c3.a0.r0@w-1-a")}, set[int]()
    for listing in (running, waiting):
        listing.drop_seen(twice, seen)
    assert (running.amount, waiting.amount) == (Amount(1, 3), Amount(2, 12))


def test_a_name_that_is_listed_twice_is_dropped_once() -> None:
    waiting = listing_of("a.k.c3.a0.r0", "b.k.c5.a0.r0", "a.k.c3.a0.r0")
    waiting.drop_seen({waiting_mark("a.k.c3.a0.r0")}, set())
    assert waiting.amount == Amount(2, 8)


def test_what_was_not_there_before_is_the_newest() -> None:
    texts = [f"{id}.k.c1.a0.r0@w-1-a" for id in "abcdef"]
    first = newest([*texts[1:], "README"], 3, shown=[], fresh=set())
    assert first == texts[3:]
    fresh = {waiting_mark(texts[0])}
    assert newest(texts, 3, shown=first, fresh=fresh) == [*texts[4:], texts[0]]
    assert newest(texts[:-1], 3, shown=first, fresh=fresh) == [texts[3], texts[4], texts[0]]
    assert newest(texts[:2], 3, shown=first, fresh=fresh) == [texts[1], texts[0]]

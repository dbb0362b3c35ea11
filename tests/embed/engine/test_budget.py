"""How many tokens a launch has is found by doubling, while that pays and fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from embed.engine.batching import Tokenized
from embed.engine.budget import LAUNCHES, MEMORY_SHARE, TOKENS_MAX, Budget, FoundBudget
from tests.support.simulated_device import SimulatedDevice

BATCH = 4096


def endless() -> Iterator[list[Tokenized]]:
    while True:
        yield [Tokenized(0, bytes(BATCH // 4 - 2))] * 4


class Card(SimulatedDevice):
    """One whose launches take some seconds, and some share of its memory."""

    def __init__(self, seconds: Callable[[int], float], per_token: float = 0.0) -> None:
        super().__init__()
        self.now, self.share = 0.0, 0.0
        self.seconds, self.per_token = seconds, per_token

    def clock(self) -> float:
        return self.now

    def run(self, tokens: int) -> None:
        self.now += self.seconds(tokens)
        self.share = 0.1 + tokens * self.per_token

    def used_share(self) -> float | None:
        return self.share


def settle(card: Card, launches: int = 200) -> FoundBudget:
    budget = FoundBudget(card, BATCH, card.clock)
    for group, _ in zip(budget.groups(endless()), range(launches), strict=False):
        tokens = sum(one.tokens for batch in group for one in batch)
        assert tokens <= budget.tokens
        card.run(tokens)
        budget.note(tokens)
    return budget


def test_it_grows_while_a_launch_has_a_fixed_cost_and_stops_when_that_no_longer_shows() -> None:
    """20 ms for each launch and 1 us for each token: 32,768 tokens are 3 % from the best."""
    budget = settle(Card(lambda tokens: 0.005 + tokens * 1e-6))
    assert budget.settled
    assert budget.tokens in (1 << 16, 1 << 17)


def test_where_size_does_not_matter_it_stays_as_planned() -> None:
    assert settle(Card(lambda tokens: tokens * 1e-6)).tokens == BATCH


def test_it_stops_before_memory_would_be_used_up() -> None:
    budget = settle(Card(lambda _tokens: 0.02, per_token=1e-5))
    assert budget.settled
    assert 0.1 + budget.tokens * 1e-5 <= MEMORY_SHARE < 0.1 + 2 * budget.tokens * 1e-5 + 0.1


def test_it_never_mixes_more_than_a_sorted_group() -> None:
    assert settle(Card(lambda _tokens: 0.02)).tokens == TOKENS_MAX


def test_what_ran_out_of_memory_is_not_tried_again() -> None:
    card = Card(lambda _tokens: 0.02)
    budget = FoundBudget(card, BATCH, card.clock)
    budget.limit(10_000)
    assert budget.settled and budget.tokens == BATCH
    budget.limit(3000)
    assert budget.tokens == 3000
    assert [len(group) for group, _ in zip(budget.groups(endless()), range(3), strict=False)] == [
        1, 1, 1
    ]  # fmt: skip


def test_pauses_between_claims_are_not_timed() -> None:
    card = Card(lambda tokens: 0.005 + tokens * 1e-6)
    budget = FoundBudget(card, BATCH, card.clock)
    for _claim in range(60):
        for group, _ in zip(budget.groups(endless()), range(card.ahead + LAUNCHES + 1),
                            strict=False):  # fmt: skip
            tokens = sum(one.tokens for batch in group for one in batch)
            card.run(tokens)
            budget.note(tokens)
        card.now += 1000.0
    assert budget.tokens >= 1 << 16


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_fixed_budget_joins_nothing(count: int) -> None:
    batches = [batch for batch, _ in zip(endless(), range(count), strict=False)]
    assert list(Budget().groups(batches)) == [[batch] for batch in batches]

"""Every way of pooling, against a loop over one sequence at a time, and sentence-transformers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from embed.models.conventions.convention import Convention, Layers, Mode
from embed.models.conventions.pooling import Pooler, reduce, reduce_segments
from embed.models.packed.states import LayerStates, States

LENGTHS = [7, 3, 12, 4, 30]
ST_NAMES = {
    Mode.CLS: "cls",
    Mode.MAX_ALL: "max",
    Mode.MEAN_ALL: "mean",
    Mode.MEAN_SQRT_LENGTH: "mean_sqrt_len_tokens",
    Mode.WEIGHTED_MEAN: "weightedmean",
    Mode.LAST: "lasttoken",
}


def states_of(lengths: list[int], width: int = 6) -> States:
    rows = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(3))
    return States(rows, torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32))


def by_hand(mode: Mode, states: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    own = states[begin : len(states) - end]
    if mode is Mode.WEIGHTED_MEAN:
        weights = torch.arange(1.0, len(states) + 1)
        return sum(w * row for w, row in zip(weights, states, strict=True)) / weights.sum()
    return {
        Mode.MEAN: own.mean(0),
        Mode.MEAN_ALL: states.mean(0),
        Mode.CLS: states[0],
        Mode.LAST: states[-1],
        Mode.MAX: own.amax(0),
        Mode.MAX_ALL: states.amax(0),
        Mode.MEAN_SQRT_LENGTH: states.sum(0) / len(states) ** 0.5,
        Mode.PER_TOKEN: own,
    }[mode]


@pytest.mark.parametrize("edges", [(1, 1), (0, 1), (2, 0)])
@pytest.mark.parametrize("mode", Mode)
def test_a_batch_is_pooled_as_each_sequence_alone(mode: Mode, edges: tuple[int, int]) -> None:
    states = states_of(LENGTHS)
    rows = Pooler(Convention((mode,)), edges)(states)
    expected = [by_hand(mode, one, *edges) for one in states.split()]
    assert torch.allclose(
        rows, torch.cat(expected) if mode is Mode.PER_TOKEN else torch.stack(expected), atol=1e-6
    )


@pytest.mark.parametrize("how", ["mean", "max"])
def test_one_operation_over_segments_equals_the_loop(how: str) -> None:
    states = states_of(LENGTHS)
    starts, stops = states.bounds[:-1].long() + 1, states.bounds[1:].long() - 1
    assert torch.allclose(
        reduce_segments(states.rows, starts, stops, how), reduce(states.rows, starts, stops, how)
    )


def test_what_overflowed_in_one_sequence_does_not_reach_its_neighbours() -> None:
    states = states_of([4, 4, 4])
    states.rows[5] = torch.inf
    starts, stops = states.bounds[:-1].long() + 1, states.bounds[1:].long() - 1
    rows = reduce_segments(states.rows, starts, stops, "mean")
    assert rows.isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("mode", ST_NAMES)
def test_modes_of_sentence_transformers_are_its_own(mode: Mode, include_prompt: bool) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    states = states_of(LENGTHS)
    padded = torch.nn.utils.rnn.pad_sequence(states.split(), batch_first=True)
    mask = torch.tensor([[n < length for n in range(max(LENGTHS))] for length in LENGTHS]).long()
    theirs = Pooling(6, ST_NAMES[mode], include_prompt=include_prompt)
    features = {"token_embeddings": padded, "attention_mask": mask, "prompt_length": 2}
    expected = theirs(features)["sentence_embedding"]
    # Their prompt's length includes the begin token.
    convention = Convention((mode,), prefix="q:", pools_prefix=include_prompt)
    rows = Pooler(convention, (1, 1), prefix_tokens=1)(states)
    assert torch.allclose(rows, expected, atol=1e-6)


def test_several_modes_are_concatenated_and_then_normalised() -> None:
    states = states_of(LENGTHS)
    both = Convention((Mode.CLS, Mode.MEAN_ALL), normalize=True)
    parts = [Pooler(Convention((mode,)))(states) for mode in both.modes]
    assert torch.allclose(Pooler(both)(states), functional.normalize(torch.cat(parts, 1), dim=1))
    assert both.width(6) == 12


def test_the_mean_is_accumulated_in_float32() -> None:
    """The mean of two neighbours in half precision lies between them."""
    rows = torch.tensor([[1.0], [1.0078125]] * 1501, dtype=torch.bfloat16)
    states = States(rows, torch.tensor([0, len(rows)]))
    for mode in (Mode.MEAN, Mode.MEAN_ALL):
        assert Pooler(Convention((mode,)))(states).item() == 1.00390625
    assert reduce_segments(rows, *states.bounds.split(1), "mean").item() == 1.00390625


def test_layers_are_concatenated_or_averaged() -> None:
    states = [torch.full((2, 3), float(n)) for n in range(5)]

    def collect(text: str) -> torch.Tensor:
        chosen = LayerStates(Layers.parse(text, 4))
        for number, each in enumerate(states):
            chosen.add(number, each)
        return chosen.finish(states[-1])

    assert collect("0,-1,1")[0].tolist() == [0, 0, 0, 4, 4, 4, 1, 1, 1]
    assert collect("mean:-4..-1")[0].tolist() == [2.5] * 3
    assert collect("-1").equal(states[-1]) and Layers.parse("4", 4) == Layers()


@pytest.mark.parametrize("text", ["5", "-6", "1..0", "a", "", "1,,2", "mean:", "0..9"])
def test_layers_that_a_model_lacks_are_refused_with_those_it_has(text: str) -> None:
    from fsqueue import UsageError

    with pytest.raises(UsageError, match=r"--layers"):
        Layers.parse(text, 4)


@pytest.mark.parametrize("family", ["esm2", "dnabert"])
def test_plans_without_a_convention_mean_what_they_always_meant(family: str) -> None:
    """So do new ones of ESM-2 and DNABERT, which therefore need none."""
    all_tokens = family == "dnabert"
    convention = Convention((Mode.MEAN_ALL if all_tokens else Mode.MEAN,))
    assert Convention.of({"pooling": "mean", "family": family}) == convention
    assert convention.options(family) == {"pooling": "mean"}


def test_a_convention_survives_its_plan() -> None:
    convention = Convention(
        (Mode.CLS, Mode.LAST), Layers((1, 2), True), normalize=True, prefix="q: ",
        pools_prefix=False,
    )  # fmt: skip
    options = convention.options("auto")
    assert Convention.of(options | {"family": "auto"}) == convention
    assert options["pooling"] == "cls+last"

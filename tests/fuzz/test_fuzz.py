"""Every fuzz target, for a moment: its seeds, what it ever stumbled over, and mutations of both.

`scripts/fuzz` runs the same targets for as long as you like, guided by coverage.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.sandbox import TOKENS

HERE = Path(__file__).parent
TARGETS = sorted(
    path.stem
    for path in HERE.glob("[a-z]*.py")
    if path.stem not in ("sandbox", "test_fuzz") and not path.stem.startswith("_")
)
FOUND = sorted((HERE / "corpus").glob("*/*"))

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nobody reads what readers log of a million broken files."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def target(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.{name}")


def test_there_is_a_target_for_every_corpus() -> None:
    assert {path.parent.name for path in FOUND} <= set(TARGETS)
    assert len(TARGETS) >= 11


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_once_found_is_not_found_again(path: Path) -> None:
    target(path.parent.name).run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_mutations_leave_the_reader_as_promised(name: str) -> None:
    run, seeds = target(name).run, target(name).SEEDS
    for seed in seeds:
        run(seed)

    # The same mutations each time: `scripts/fuzz` looks for new ones, and CI that nothing was lost.
    @settings(
        max_examples=300, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(seed=st.sampled_from(seeds), cuts=st.lists(EDITS, max_size=4))
    def mutate(seed: bytes, cuts: list[tuple[float, int, bytes]]) -> None:
        data = bytearray(seed)
        for where, length, put in cuts:
            at = int(where * len(data))
            data[at : at + length] = put
        run(bytes(data))

    mutate()


EDITS = st.tuples(
    st.floats(0, 1), st.integers(0, 12), st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6))
)

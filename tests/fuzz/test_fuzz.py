"""Every fuzz target, briefly: its seeds, all earlier findings, and mutations of the seeds.

`scripts/fuzz` runs the same targets for any length of time, guided by coverage.
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
    """Discard what readers log about broken files."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def target(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.{name}")


def test_there_is_a_target_for_every_corpus() -> None:
    assert {path.parent.name for path in FOUND} <= set(TARGETS)
    assert len(TARGETS) >= 11


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_earlier_finding_does_not_come_back(path: Path) -> None:
    target(path.parent.name).run(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_mutations_are_read_or_refused_by_a_typed_error(name: str) -> None:
    run, seeds = target(name).run, target(name).SEEDS
    for seed in seeds:
        run(seed)

    # The same mutations each time: CI looks for regressions, `scripts/fuzz` for new findings.
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

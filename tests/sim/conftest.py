"""Run every test here on the simulation, and report what was simulated."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.conftest import REPORT
from tests.sim.scenario import simulated_fsqueue
from tests.sim.statistics import STATISTICS


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report how much was simulated, and what happened in it."""
    if lines := STATISTICS.lines():
        session.config.stash[REPORT]["simulation"] = lines


@pytest.fixture(autouse=True)
def simulation() -> Iterator[None]:
    """Run fsqueue on the simulation, without its log messages."""
    logging.disable(logging.CRITICAL)
    with simulated_fsqueue():
        yield
    logging.disable(logging.NOTSET)

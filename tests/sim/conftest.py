"""Put the simulation under every test here, and say at the end what was simulated."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sim.story import theatre
from tests.sim.tally import TALLY


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how much was played, and what happened in it."""
    lines = TALLY.lines()
    if lines:
        terminalreporter.section("simulation")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def stage() -> Iterator[None]:
    """Put the simulation under fsqueue; what workers log in it is noise here."""
    logging.disable(logging.CRITICAL)
    with theatre():
        yield
    logging.disable(logging.NOTSET)

"""Put the simulation under every test here, and say at the end what was simulated."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.conftest import REPORT
from tests.sim.story import theatre
from tests.sim.tally import TALLY


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Report how much was simulated, and what happened in it."""
    if lines := TALLY.lines():
        session.config.stash[REPORT]["simulation"] = lines


@pytest.fixture(autouse=True)
def stage() -> Iterator[None]:
    """Put the simulation under fsqueue; what workers log in it is noise here."""
    logging.disable(logging.CRITICAL)
    with theatre():
        yield
    logging.disable(logging.NOTSET)

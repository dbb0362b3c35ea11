"""Say at the end of the tests what was simulated."""

from __future__ import annotations

from typing import Any

from tests.sim.tally import TALLY


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how much was played, and what happened in it."""
    lines = TALLY.lines()
    if lines:
        terminalreporter.section("simulation")
        for line in lines:
            terminalreporter.write_line(line)

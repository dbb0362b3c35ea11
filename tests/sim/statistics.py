"""Count what happened in all scenarios, so that what never happens is noticed."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tests.sim.explore import Found
from tests.sim.scenario import Simulation

DONE: Final = (
    "publish take steal finish fail requeue release recover adopt cancel retry enlist renew retire"
).split() + ["end a lease", "zombie refused"]
"""What actors do."""

ACCIDENTS: Final = (
    "crash ghost pause signal hang lost again stale error full interrupt".split()
    + ["error, done", "resumed after a lease", "host with a wrong clock"]
    + ["stale lookup", "stale listing", "stale attribute"]
    + ["power cut", "name lost with the power", "byte lost with the power"]
)
"""What goes wrong; `FaultRates` and `Mount` describe each kind."""


class Statistics:
    """Sums over scenarios."""

    def __init__(self) -> None:
        self.seeds: set[int] = set()
        self.scenes = 0
        self.operations = 0
        self.count: Counter[str] = Counter()
        self.noticed: dict[str, int] = {}
        """How many scenarios it took until each deliberate mistake was noticed."""
        self.steps: Counter[str] = Counter()
        """How often each step of the state machine was done, in how many examples."""
        self.explored: dict[str, Found] = {}
        """What each exploration of all orders came to."""

    def add(self, simulation: Simulation) -> None:
        """Add a scenario that ended well."""
        if simulation.scenario.scene:
            self.scenes += 1
        else:
            self.seeds.add(simulation.scenario.seed)
        self.operations += simulation.world.steps
        self.count += simulation.count_events()

    def missing(self) -> list[str]:
        """Return what should have happened, and never did."""
        return [what for what in (*DONE, *ACCIDENTS) if not self.count[what]]

    def lines(self) -> list[str]:
        """Return the lines to print at the end of the tests."""
        lines = []
        if self.operations:
            lines.append(
                f"{self.operations:,} steps in {len(self.seeds):,} seeds and {self.scenes:,} "
                f"scenes; I1-I9 held after each"
            )
            for title, names in (("done", DONE), ("went wrong", ACCIDENTS)):
                counts = (f"{name} {self.count[name]:,}" for name in names)
                lines.append(f"{title}: {', '.join(counts)}")
        if self.noticed:
            worst = max(self.noticed, key=lambda name: self.noticed[name])
            lines.append(
                f"{len(self.noticed)} deliberate mistakes, each noticed; the last after "
                f"{self.noticed[worst]} scenarios: {worst}"
            )
        if self.steps:
            steps = (f"{step} {count:,}" for step, count in sorted(self.steps.items()))
            lines.append(f"steps against the model: {', '.join(steps)}")
        for program, found in self.explored.items():
            lines.append(
                f"all orders of {program}: {found.states:,} states, {found.steps:,} operations, "
                f"{found.schedules:.3g} schedules, {found.ends} pools left and settled"
            )
        return lines


STATISTICS: Final = Statistics()

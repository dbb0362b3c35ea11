"""The real protocol against a model, in steps that hypothesis chooses (see `state_machine.py`).

`test_scenarios.py` has concurrent processes, and `test_exploration.py` all orders of a few actors.

    SIM_EXAMPLES=5000 pytest tests/sim/test_state_machine.py    # other examples every time
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.sim.state_machine import STEPS, PoolMachine
from tests.sim.statistics import STATISTICS

EXAMPLES = int(os.environ.get("SIM_EXAMPLES", "150"))


def run_examples(examples: int, *, shrink: bool = True) -> None:
    """Run this many examples; raises what hypothesis found, with the steps that lead there."""
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize="SIM_EXAMPLES" not in os.environ,
            database=None,
            deadline=None,
            print_blob=True,
            phases=(Phase.generate, *[Phase.shrink] * shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
def test_after_every_step_the_pool_holds_what_the_model_foresees() -> None:
    PoolMachine.count = STATISTICS.steps
    run_examples(EXAMPLES)
    assert not {*STEPS, "accident"} - {*STATISTICS.steps}

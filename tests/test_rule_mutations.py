"""A deliberate mistake in a rule makes that rule's own test fail.

These are rules about programs, terminals and repairs; those that a file system shows have theirs in
tests/sim/rule_mutations.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from fsqueue.processes.program import Program
from tests.support.rule_mistakes import MISTAKES, VARIABLE

ROOT = Path(__file__).parents[1]
HANGS_S = 15.0
"""A test that takes so long hangs, which is a failure, too."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_rule_makes_its_test_fail(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.support.rule_mistakes"]
    command += ["-p", "no:cacheprovider", MISTAKES[name].test]
    path = f"{ROOT}:{ROOT}/tests/support/mistaken" if MISTAKES[name].everywhere else str(ROOT)
    mark = f"RULE_MISTAKE_RUN={uuid4()}"
    environment = os.environ | {VARIABLE: name, "PYTHONPATH": path}
    environment |= dict([mark.split("=")])
    with (tmp_path / "log").open("wb") as log:
        program = Program(
            command,
            environment={os.fsencode(k): os.fsencode(v) for k, v in environment.items()},
            directory=str(ROOT),
            stdout=log.fileno(),
            mark=mark.encode(),
        )
    hangs = not program.wait(HANGS_S)
    program.end(1.0)  # and what its tests left running
    program.close()
    said = (tmp_path / "log").read_text()
    assert hangs or "1 failed" in said, said[-3000:]

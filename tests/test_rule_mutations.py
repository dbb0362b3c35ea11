"""A deliberate mistake in a rule makes that rule's own test fail.

These are rules about programs, terminals and repairs; those that a file system shows have theirs in
tests/sim/rule_mutations.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.rule_mistakes import MISTAKES, VARIABLE

ROOT = Path(__file__).parents[1]
FAILED = 1
"""The exit status of pytest if tests failed, and nothing else went wrong."""
HANGS_S = 15.0
"""A test that takes so long hangs, which is a failure, too."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_rule_makes_its_test_fail(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.support.rule_mistakes"]
    command += ["-p", "no:cacheprovider", MISTAKES[name].test]
    path = f"{ROOT}:{ROOT}/tests/support/mistaken" if MISTAKES[name].everywhere else str(ROOT)
    environment = os.environ | {VARIABLE: name, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS_S
        )
    except subprocess.TimeoutExpired:
        return
    assert done.returncode == FAILED and "1 failed" in done.stdout, done.stdout[-3000:]

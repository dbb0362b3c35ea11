"""What starting costs: known by the modules that are imported, not by the clock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.planning import make_inputs, plan_command
from tests.support.processes import environment

HEAVY = {"torch", "transformers", "rich", "pynvml", "numpy", "safetensors", "tokenizers"}
"""Half a second and more, or a driver's library. Only what needs them imports them."""

PROBE = """
import os, sys
from fsqueue.cli import main
os._exit = sys.exit  # a worker ends its process at once
sys.argv = ["fsqueue", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


def imported(*words: str) -> set[str]:
    """Return the top-level modules that `fsqueue WORD...` has imported when it ends."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in run.stderr, run.stderr
    modules = run.stderr.splitlines()[-1].split()
    assert "fsqueue" in modules
    return {module.partition(".")[0] for module in modules}


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["work", "--help"],
        ["status", "--help"],
        ["plan", "command", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert imported(*words) & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["workers"], ["check"]])
def test_looking_at_a_pool_imports_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 2), ("cat", "{input}"))
    assert imported(words[0], pool.root, *words[1:]) & HEAVY == set()


@pytest.mark.slow
def test_a_worker_without_a_gpu_imports_only_what_its_claims_need(tmp_path: Path) -> None:
    """pynvml alone: it is what finds out that there is no GPU."""
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 2), ("cat", "{input}"))
    assert imported("work", pool.root) & HEAVY <= {"pynvml"}


@pytest.mark.slow
def test_the_probe_sees_what_is_imported() -> None:
    """Or the tests above could not fail."""
    code = "import sys, numpy; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "numpy" in run.stdout.split()

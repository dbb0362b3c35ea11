"""scripts/gpu_check is ready for the day there is a GPU: every phase runs on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PHASES = ["probe", "parity", "memory", "throughput", "peers", "pool"]


def gpu_check(project: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, project / "scripts" / "gpu_check", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_dry_run_goes_through_every_phase_on_a_cpu(project: Path, tmp_path: Path) -> None:
    done = gpu_check(project, "--dry-run", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert list(dict.fromkeys(row["phase"] for row in rows)) == PHASES
    claims = [row for row in rows if row["holds"] is not None]
    assert len(claims) > 15 and all(row["holds"] for row in claims)
    pending = [row["what"] for row in rows if row["value"].startswith("pending: needs a GPU")]
    assert pending == ["memory capped", "device-side assert ends the worker"]


def test_wrong_words_get_one_line(project: Path) -> None:
    done = gpu_check(project, "--dry-run", "--only", "probe,nothing")
    assert done.returncode == 2 and "'nothing' is not a phase" in done.stderr

"""Real workers of unequal speed, planned as equals, end together by stealing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow


def bench() -> ModuleType:
    path = Path(__file__).parents[3] / "scripts" / "bench" / "unequal.py"
    spec = importlib.util.spec_from_file_location("unequal", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["unequal"] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_faster_of_unequal_workers_steals_more_and_all_is_done(
    tmp_path: Path,
) -> None:
    module = bench()
    found = module.run(tmp_path, seconds=8, count=40, right=False)
    assert sum(each.done for each in found) == 40
    slow, _, fast = found
    assert fast.done > slow.done and len(fast.stolen) > len(slow.stolen)
    for each in found:
        for steal in each.stolen:
            assert {"t", "worker", "id", "cost", "from", "to"} <= steal.keys()
            assert steal["from"] != steal["to"]

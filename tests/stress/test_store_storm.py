"""A store under SIGKILL: eight writers, two compactors, and every vector as it was first given out.

STORE_STORM_DIRS names the directory to do it in, or two that are mounts of the same one:

    STORE_STORM_DIRS=/mnt/a/store:/mnt/b/store pytest tests/stress/test_store_storm.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.store_storm import Storm

pytestmark = pytest.mark.slow
ROOTS = os.environ.get("STORE_STORM_DIRS", "")


def test_every_key_is_there_exactly_as_computed_after_a_storm(tmp_path: Path) -> None:
    roots = [Path(root) for root in ROOTS.split(":") if root] or [tmp_path / "store"]
    work = tmp_path / "work"
    work.mkdir()
    tally = Storm(roots, work, numbers=2000, lasts_s=10.0).run()
    print(tally)
    assert not tally.wrong, "\n".join(tally.wrong)
    assert not tally.untrue
    assert (tally.missing, tally.strange) == (0, 0)
    assert tally.kills > 30
    assert tally.notes > 4000
    assert tally.compactions > 5

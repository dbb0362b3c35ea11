"""Read an export's target with the libraries that its users use; kill an export.

python -m tests.support.export_targets TO STORE TARGET N      # is killed after N batches
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embed.export import lancedb_table
from embed.export import target as export_target
from embed.export.export_space import ExportRequest, ExportResult, export_space
from tests.support.processes import wait_for

NAME = "default"


@dataclass(frozen=True)
class Row:
    """One vector and its metadata."""

    vector: Any
    facts: dict[str, Any]


Found = dict[str, Row]
"""By id. Every reader asserts that no id occurs twice."""


def exported(to: str, root: Path, target: Path | str, **options: Any) -> ExportResult:
    """Export without showing progress."""
    request = ExportRequest(str(root), **options)
    return export_space(to, str(target), request, lambda _done, _total: None)


def by_id(rows: list[tuple[str, Any, dict[str, Any]]]) -> Found:
    """Return rows by their id, none of which occurs twice."""
    found = {id: Row(np.array(vector, np.float32), facts) for id, vector, facts in rows}
    assert len(found) == len(rows), "an id was added twice"
    return found


def of_lancedb(target: Path) -> Found:
    """Read the table."""
    import lancedb

    rows = lancedb.connect(str(target)).open_table(NAME).to_arrow().to_pylist()
    return by_id([(row.pop("id"), row.pop("vector"), row) for row in rows])


def of_chroma(target: Path | str) -> Found:
    """Read the collection."""
    found = chroma_client(target).get_collection(NAME, embedding_function=None).get(
        include=["embeddings", "metadatas", "documents"]
    )  # fmt: skip
    columns = (found[name] for name in ("ids", "embeddings", "metadatas", "documents"))
    return by_id([(i, v, {**m, "text": d}) for i, v, m, d in zip(*columns, strict=True)])


def chroma_client(target: Path | str) -> Any:
    """Return a client of a directory, or of a server by its URL."""
    import chromadb
    from chromadb.config import Settings

    settings = Settings(anonymized_telemetry=False)
    if str(target).startswith("http"):
        host, port = str(target).removeprefix("http://").split(":")
        return chromadb.HttpClient(host=host, port=int(port), settings=settings)
    return chromadb.PersistentClient(str(target), settings=settings)


def of_faiss(target: Path) -> Found:
    """Read the index, and as many records as it has vectors."""
    import faiss

    index = faiss.read_index(str(target))
    lines = Path(f"{target}.jsonl").read_text().splitlines()[: index.ntotal]
    records = [json.loads(line) for line in lines]
    vectors = index.reconstruct_n(0, index.ntotal)
    return by_id([(r.pop("id"), v, r) for r, v in zip(records, vectors, strict=True)])


def of_npz(target: Path) -> Found:
    """Read it as numpy does, without pickle."""
    with np.load(target) as file:
        names = ("input", "record", "length")
        values = zip(*(file[name].tolist() for name in names), strict=True)
        facts = [dict(zip(names, row, strict=True)) for row in values]
        return by_id(list(zip(file["ids"].tolist(), file["embeddings"], facts, strict=True)))


def of_h5(target: Path) -> Found:
    """Read a dataset for each id."""
    import h5py

    with h5py.File(target) as file:
        return by_id([(id, file[id][:], dict(file[id].attrs)) for id in file])


def of_parquet(target: Path) -> Found:
    """Read it with pyarrow."""
    from pyarrow import parquet

    rows = parquet.read_table(target).to_pylist()
    return by_id([(row.pop("id"), row.pop("embedding"), row) for row in rows])


READERS: dict[str, Callable[[Path], Found]] = {
    "lancedb": of_lancedb,
    "chroma": of_chroma,
    "faiss": of_faiss,
    "npz": of_npz,
    "h5": of_h5,
    "parquet": of_parquet,
}


@contextmanager
def chroma_server(folder: Path) -> Iterator[str]:
    """Run a real Chroma server on loopback, and yield its URL."""
    program = Path(sys.executable).parent / "chroma"
    log = folder / "chroma.log"
    port = free_port()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [program, "run", "--path", folder / "data", "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=out,
            env=os.environ | {"ANONYMIZED_TELEMETRY": "False"},
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/api/v2/heartbeat", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    try:
        wait_for(answers, f"the Chroma server of {folder} to answer")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def free_port() -> int:
    """Return an unused port of loopback."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> None:
    """Export in small batches, and be killed by SIGKILL after the n-th."""
    to, root, target, at = sys.argv[1:]
    export_target.BLOCK_BYTES, lancedb_table.COMMIT_BATCHES = 4 * 8 * 10, 2
    batches = 0

    def progress(_done: int, _total: int) -> None:
        nonlocal batches
        batches += 1
        if batches == int(at):
            os.kill(os.getpid(), signal.SIGKILL)

    print(export_space(to, target, ExportRequest(root), progress).added)


if __name__ == "__main__":
    main()

"""Every command of `fsqueue embed`, and the plans of its handlers (see `crash_cases.py`)."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any, Final

import numpy as np

from embed.handlers.compact import Compact
from embed.handlers.embed import Embed
from embed.store import Store
from embed.store.verify import verify
from fsqueue.handler import load_handler
from fsqueue.pool.settings import open_pool
from tests.support.crash_cases import Prepare, Reads, Writes, settle
from tests.support.export_targets import READERS
from tests.support.fake_embeddings import embed_all, fasta, proteins
from tests.support.generic_models import TEXTS, write_model
from tests.support.planning import plan
from tests.support.pools import state_counts
from tests.support.stores import keys_of, open_view, put, vectors_of

VECTORS: Final = range(12)


# ---- before ----


def model(shared: Path) -> Path:
    """Return a small model of texts."""
    folder = shared / "bert"
    return folder if folder.exists() else write_model(folder, "bert")


@functools.cache
def embed() -> Embed:
    """Return one handler for all, so that the model is loaded once."""
    handler = load_handler("embed")
    assert isinstance(handler, Embed)
    return handler


def texts(site: Path, shared: Path) -> None:
    """Two documents, and a model."""
    model(shared)
    for number in range(2):
        path = site.parent / "in" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(random.Random(number).choices(" ".join(TEXTS).split(), k=20)))


def planned(site: Path, shared: Path) -> None:
    """A pool in which two documents wait to be embedded into a store."""
    texts(site, shared)
    options = {option.name: option.default for option in embed().options}
    options |= {"model": str(model(shared)), "text": True, "store": str(site / "store")}
    inputs = sorted((site.parent / "in").iterdir())
    plan(site / "pool", embed(), inputs, options, lease_s=0.4)


def contigs(site: Path, _shared: Path) -> None:
    """Three contigs."""
    bases = {f"c{n}": "".join(random.Random(n).choices("ACGT", k=900)) for n in range(3)}
    fasta(site.parent / "in" / "x.fa", bases)


def embedded(site: Path, _shared: Path) -> None:
    """A finished pool of one model."""
    inputs = [fasta(site.parent / "in" / f"{n}.faa", proteins(5, n, 40)) for n in range(2)]
    embed_all(site / "pool", inputs)


def pairs(site: Path, _shared: Path) -> None:
    """A finished pool of two models; one has a sequence that the other does not."""
    both = proteins(5, 0, 40)
    one = fasta(site.parent / "in" / "x_protein.faa", both | {"more": "MKV"})
    bases = {id: "ACGT" * (len(residues) // 4 + 1) for id, residues in both.items()}
    other = fasta(site.parent / "in" / "x_nucleotide.fa", bases)
    embed_all(site / "pool", [one])
    embed_all(site / "pool", [other], "dnabert")


def stored(site: Path, _shared: Path) -> None:
    """A store of a few shards."""
    view = open_view(site / "store")
    for begin in range(0, len(VECTORS), 4):
        put(view, VECTORS[begin : begin + 4])


def searchable(site: Path, shared: Path) -> None:
    """A store, and a vector to look for."""
    stored(site, shared)
    np.save(site / "query.npy", vectors_of([1]))


# ---- after ----


def holds_all(site: Path) -> None:
    """Assert that the store is intact, and holds each vector once."""
    view = open_view(site / "store")
    assert not (problems := list(verify(view))), problems
    found, vectors = view.lookup(keys_of(VECTORS))
    assert found.all() and vectors.tobytes() == vectors_of(VECTORS).tobytes()


def compacted(site: Path) -> None:
    holds_all(site)
    names = sorted(path.name for path in (site / "store" / "default").glob("*/*.safetensors"))
    assert names == ["00000001-00000003.safetensors"]


def compaction_done(site: Path) -> None:
    settle(site / "pool", Compact())
    holds_all(site)


def stores_documents(site: Path) -> None:
    """Assert that a fresh worker embeds everything planned into the store, each chunk once."""
    embed()._store = None  # it would keep shards open that were restored since
    settle(site / "pool", embed())
    assert state_counts(open_pool(f"{site}/pool")).keys() == {"done"}
    store = Store(site / "store")
    store.view.refresh()
    assert not (problems := list(verify(store.view))), problems
    shards = store.view.shards
    ids = [row.record for shard in shards for row in shard.provenance(list(range(shard.count)))]
    assert len(set(ids)) == len(ids) and {id.partition("#")[0] for id in ids} == {"0.txt", "1.txt"}


def exported(to: str) -> Any:
    """Return a check that a target holds every vector once."""

    def complete(site: Path) -> None:
        found = READERS[to](site / "out")
        wanted = vectors_of(VECTORS)
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True) if to == "faiss" else 1
        order = {row.facts["record"]: row.vector for row in found.values()}
        got = np.stack([order[f"record{number}"] for number in VECTORS])
        assert len(found) == len(VECTORS) and np.allclose(got, wanted, rtol=1e-5)

    return complete


def _export(to: str, **how: Any) -> Writes:
    words = f"embed export SITE/store SITE/out --to {to}"
    return Writes(words, stored, exported(to), **how)


def _merge(name: str, prepare: Prepare = embedded, *, rough: tuple[str, ...] = ()) -> Writes:
    return Writes(f"embed merge SITE/pool SITE/{name}", prepare, rough=rough)


WRITES: Final = {
    "plan embed": Writes(
        "plan embed SITE/pool SITE/../in --gpus cpu --text --model SHARED/bert --store SITE/store",
        texts, stores_documents, stays=True, rough=("store/",),
    ),
    "plan compact": Writes(
        "plan compact SITE/pool SITE/store --gpus cpu --grace 0", stored, compaction_done,
        stays=True,
    ),
    "work (embeds into a store)": Writes(
        "work SITE/pool", planned, stores_documents, again="", stays=True, most=20,
        rough=("store/",),
    ),
    "embed prepare": Writes(
        "embed prepare SITE/../in/x.fa -o SITE/out --chunk 300 --split 2", contigs
    ),
    "embed file": Writes(
        "embed file SITE/../in/0.txt -o SITE/out.npz --text --model SHARED/bert", texts
    ),
    "embed merge (safetensors)": _merge("out.safetensors"),
    "embed merge (npz)": _merge("out.npz"),
    "embed merge (h5)": _merge("out.h5"),
    "embed merge (parquet)": _merge("out.parquet"),
    "embed merge (virnucpro)": _merge("out --format virnucpro", pairs),
    "embed merge (pairs)": _merge("out.npz", pairs),
    "embed store compact": Writes(
        "embed store compact SITE/store --grace 0", stored, compacted, rough=("store/",)
    ),
    "embed export (npz)": _export("npz"),
    "embed export (h5)": _export("h5"),
    "embed export (parquet)": _export("parquet", most=12),
    "embed export (faiss)": _export("faiss"),
    "embed export (lancedb)": _export("lancedb", rough=("out",), alone=True, most=12),
    "embed export (chroma)": _export("chroma", rough=("out",), alone=True, nightly=True),
}  # fmt: skip

READS: Final = {
    "embed calibrate": Reads("embed calibrate SHARED/bert --seconds 1", texts),
    "embed search": Reads("embed search SITE/store SITE/query.npy", searchable),
    "embed store info": Reads("embed store info SITE/store", stored),
    "embed store verify": Reads("embed store verify SITE/store", stored),
    "embed export (dry run)": Reads("embed export SITE/store SITE/out --to npz --dry-run", stored),
}

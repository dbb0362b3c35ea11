"""The handler end to end on a tiny model: right rows, one set of bytes, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed import read
from embed.models.esm2.network import load
from embed.models.esm2.tokenizer import token_ids
from embed.outputs.claim_file import decode_checkpoint
from fsqueue import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    Interrupted,
    NotSupportedError,
    UsageError,
)
from tests.embed.conftest import Bench, fasta

MakeBench = Callable[..., Bench]
SEQUENCES = [(f"id{n}", "MKVLAAGIVGLCAKAY"[n % 7 :] * (n % 23 + 1)) for n in range(120)]


def alone(bench: Bench, residues: str) -> np.ndarray:
    """Embed one sequence by itself, around the handler."""
    encoder = load(bench.options["folder"], "float32", torch.device("cpu"))
    (states,) = encoder.hidden([token_ids(residues.encode())]).split()
    return states[1:-1].mean(0).numpy()


# ---- results ----


def test_rows_are_the_mean_vectors_in_input_order(bench: Bench) -> None:
    found = bench.embed(bench.file(fasta(SEQUENCES)))
    assert found.ids == [name for name, _ in SEQUENCES]
    assert found.rows.shape == (120, 32)
    for row, (_, residues) in zip(found.rows[::10], SEQUENCES[::10], strict=True):
        assert np.abs(row - alone(bench, residues)).max() < 1e-5


def test_the_header_says_how_the_numbers_were_computed(bench: Bench) -> None:
    found = bench.embed(bench.file(fasta(SEQUENCES)))
    meta = found.metadata
    assert meta["model"] == "tiny_esm2"
    assert meta["weights"].startswith("sha256:")
    assert (meta["pooling"], meta["dtype"], meta["revision"]) == ("mean", "float32", "")
    assert meta["versions"].keys() == {"fsqueue", "torch", "transformers"}
    assert meta["counts"]["sequences"] == 120
    assert bench.warnings == []


def test_the_location_of_the_input_is_not_in_the_output(bench: Bench) -> None:
    """Nor who computed it, or when: the header holds these entries and no others."""
    (bench.tmp_path / "elsewhere").mkdir()
    (one,) = bench.plan(bench.file(fasta(SEQUENCES)))
    (two,) = bench.plan(bench.file(fasta(SEQUENCES), "elsewhere/x.faa"))
    assert one.identity != two.identity
    assert bench.run(one) == bench.run(two)
    keys = read(bench.work(one).output).metadata.keys()
    assert keys == set(
        "model revision weights dtype pooling pooled long residues_max counts versions".split()
    )


def test_long_sequences_are_cut_and_counted(make_bench: MakeBench) -> None:
    bench = make_bench(max_residues=50)
    found = bench.embed(bench.file(fasta([("long", "MKVLA" * 30), ("fits", "MKVLA" * 10)])))
    assert np.abs(found.rows[0] - found.rows[1]).max() < 1e-5
    assert found.metadata["counts"]["truncated"] == 1
    assert bench.warnings == ["1 sequence was longer than --max-residues and truncated"]


def test_the_default_cut_is_at_1022_residues(bench: Bench) -> None:
    path = bench.file(fasta([("a", "MK" * 600), ("b", "MK" * 511)]))
    found = bench.embed(path)
    assert found.metadata["counts"]["truncated"] == 1
    assert np.abs(found.rows[0] - found.rows[1]).max() < 1e-5


def test_unknown_residues_keep_their_place_and_are_counted(bench: Bench) -> None:
    found = bench.embed(bench.file(fasta([("a", "MKJJ*jLV**"), ("b", "mkxxxxlv")])))
    assert np.abs(found.rows[0] - found.rows[1]).max() < 1e-5
    assert found.metadata["counts"]["unknown_residues"] == 4
    assert found.metadata["counts"]["residues"] == 16


def test_an_empty_sequence_gets_zeros_and_is_counted(bench: Bench) -> None:
    found = bench.embed(bench.file(">none\n>a\nMKV\n>stars\n***\n"))
    assert found.ids == ["none", "a", "stars"]
    assert not found.rows[[0, 2]].any()
    assert found.rows[1].any()
    assert found.metadata["counts"]["empty"] == 2
    assert np.isfinite(found.rows).all()


def test_duplicate_ids_are_kept_in_order_with_a_warning(bench: Bench) -> None:
    found = bench.embed(bench.file(fasta([("a", "MKV"), ("a", "WWW"), ("b", "L"), ("a", "MKV")])))
    assert found.ids == ["a", "a", "b", "a"]
    assert np.abs(found.rows[0] - found.rows[3]).max() < 1e-5
    assert np.abs(found.rows[0] - found.rows[1]).max() > 0.01
    assert found.metadata["counts"]["duplicate_ids"] == 2
    assert any("2 sequences have the id of an earlier one" in line for line in bench.warnings)


def test_a_file_without_sequences_gives_an_empty_table(bench: Bench) -> None:
    path = bench.file(b"")
    source = bench.handler.survey(path, bench.options)
    assert source.notes == [f"{path}: contains no sequences; its claim will give an empty table."]
    found = bench.embed(path)
    assert (found.ids, found.rows.shape) == ([], (0, 32))


def test_ids_with_slashes_quotes_and_other_scripts_are_kept(bench: Bench) -> None:
    ids = ["a/b", 'say"so"', "蛋白", "x\\y"]
    assert bench.embed(bench.file(fasta([(id, "MKV") for id in ids]))).ids == ids


def test_half_precision_is_planned_and_near(make_bench: MakeBench, bench: Bench) -> None:
    path = bench.file(fasta(SEQUENCES))
    full = bench.embed(path).rows
    for dtype in ("bfloat16", "float16"):
        rows = make_bench(dtype=dtype).embed(path).rows
        assert rows.dtype == np.float32
        cosine = (rows * full).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(full, axis=1)
        assert cosine.min() > 0.999


def test_a_vector_that_is_not_finite_fails_the_claim_by_name(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.engine import engine

    def overflowing(_engine: object, batches: Iterable[list[object]], _warn: object) -> Any:
        for batch in batches:
            yield batch, np.full((len(batch), 32), np.inf, np.float32)

    monkeypatch.setattr(engine.Engine, "run", overflowing)
    (item,) = bench.plan(bench.file(fasta([("big", "MKV")])))
    with pytest.raises(ClaimFailed, match=r"'big'.*Fetch the model again"):
        bench.run(item)
    assert not os.path.exists(bench.work(item).partial)


# ---- one set of bytes ----


def test_claim_boundaries_change_nothing_beyond_the_last_digits(
    bench: Bench, proteins: list[Path]
) -> None:
    paths = [str(path) for path in proteins[1:]]
    whole = bench.embed(*paths)
    (item,) = bench.plan(*paths)
    many = bench.plan(*paths, cost_max=item.cost // 16)
    assert len(many) > 8
    found: dict[str, np.ndarray] = {}
    for item in many:
        bench.run(item)
        part = read(bench.work(item).output)
        found |= zip(part.ids, part.rows, strict=True)
    assert found.keys() == set(whole.ids)
    for id, row in zip(whole.ids, whole.rows, strict=True):
        assert np.abs(found[id] - row).max() < 1e-5


def test_bytes_do_not_depend_on_what_the_worker_did_before(
    make_bench: MakeBench, bench: Bench
) -> None:
    (one,) = bench.plan(bench.file(fasta(SEQUENCES), "one.faa"))
    (two,) = bench.plan(bench.file(fasta(SEQUENCES[::-1]), "two.faa"))
    used = [bench.run(one), bench.run(two)]
    fresh = make_bench()
    assert [fresh.run(two), fresh.run(one)] == used[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("stops_every", [1, 3])
def test_an_interrupted_claim_ends_in_the_same_bytes(
    make_bench: MakeBench, stops_every: int
) -> None:
    bench = make_bench(tokens_per_batch=300)
    (item,) = bench.plan(bench.file(fasta(SEQUENCES[:60])))
    undisturbed = bench.run(item)
    bench.work(item).output.unlink()
    stopped = 0
    while stopped < 300:
        stopping = iter([False] * stops_every)
        work = bench.work(item, stop=partial(next, stopping, True))
        try:
            make_bench(tokens_per_batch=300).handler.run(work)
            break
        except Interrupted:
            stopped += 1
            assert not work.output.exists()
    assert 5 <= stopped < 300
    assert work.output.read_bytes() == undisturbed


def test_a_crash_costs_what_was_not_yet_saved(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.engine import engine

    bench = make_bench(tokens_per_batch=300)
    bench.options["checkpoint_seconds"] = 0  # save after every batch
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    undisturbed = bench.run(item)
    total = len(bench.work(item).checkpoints())
    for name in bench.work(item).checkpoints():
        os.unlink(f"{bench.work(item).partial}/{name}")

    real, done = engine.Engine.run, []

    def dies(self: engine.Engine, batches: Iterable[list], warn: Callable[[str], None]) -> Any:
        for batch, rows in real(self, batches, warn):
            if len(done) == 7:
                done.append(0)
                raise KeyboardInterrupt
            done.append(len(batch))
            yield batch, rows

    monkeypatch.setattr(engine.Engine, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        bench.run(item)
    assert bench.run(item) == undisturbed
    assert len(done) == total + 1


@pytest.mark.parametrize("where", ["of the device", "of the worker"])
def test_a_claim_that_ends_early_leaves_no_thread(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Not even while the exception is kept, and with it the frames of what was read ahead."""
    bench = make_bench(tokens_per_batch=16)
    (item,) = bench.plan(bench.file(fasta([(str(n), "MKVLAAGIVG") for n in range(3000)])))
    bench.handler.warm(bench.options)
    before = set(threading.enumerate())

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(where)

    work = bench.work(item)
    if where == "of the device":
        monkeypatch.setattr("embed.engine.device.Cpu.launch", fail)
    else:
        work.report = fail
    with pytest.raises(KeyboardInterrupt) as held:
        bench.handler.run(work)
    assert held.traceback
    assert not set(threading.enumerate()) - before


def test_a_checkpoint_holds_the_batches_in_its_name(make_bench: MakeBench) -> None:
    """Two owners may save the same name: then what either holds must do for both."""
    bench = make_bench(tokens_per_batch=300)
    bench.options["checkpoint_seconds"] = 0
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    undisturbed = bench.run(item)
    partial_directory = Path(bench.work(item).partial)
    for number, path in enumerate(sorted(partial_directory.iterdir())):
        if number not in (4, 5, 9):
            path.unlink()
    bench.options["checkpoint_seconds"] = 3600
    stopping = iter([False] * 12)
    with pytest.raises(Interrupted):
        bench.handler.run(bench.work(item, stop=partial(next, stopping, True)))
    assert len(list(partial_directory.iterdir())) == 6  # 0-3, 4, 5, 6-8, 9, 10-14
    for name, data in bench.work(item).checkpoints().items():
        _, first, last = name.split("-")
        assert sorted(decode_checkpoint(data)) == list(range(int(first), int(last) + 1))
    assert bench.run(item) == undisturbed


def test_damaged_checkpoints_are_ignored(make_bench: MakeBench) -> None:
    bench = make_bench(tokens_per_batch=300)
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    undisturbed = bench.run(item)
    bench.work(item).checkpoint("rows-0000000-0000003", b"rubbish")
    assert bench.run(item) == undisturbed
    assert any("rows-0000000-0000003 is ignored" in line for line in bench.warnings)


def test_progress_adds_up(make_bench: MakeBench) -> None:
    bench = make_bench(tokens_per_batch=300)
    bench.embed(bench.file(fasta([*SEQUENCES, ("none", "")])))
    done = [count for count, _ in bench.progress]
    assert done == sorted(done)
    assert bench.progress[-1] == (121, 121)


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    expected = bench.run(item)
    work = tmp_path / "work.pickle"
    work.write_bytes(pickle.dumps((item.payload, bench.options)))
    code = (
        "import sys, pickle, pathlib\n"
        "from embed.handlers.embed import Embed; from fsqueue import Work\n"
        "payload, options = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "work = Work(id='x', kind='k', cost=1, attempt=0, payload=payload, options=options,\n"
        "    output=pathlib.Path(sys.argv[2]), partial=sys.argv[2] + '.partial',\n"
        "    is_stopping=lambda: False, report=lambda *_: None, warn=print)\n"
        "Embed().run(work)"
    )
    out = tmp_path / "other.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}  # must not matter
    subprocess.run([sys.executable, "-c", code, work, out], check=True, env=environment)
    assert out.read_bytes() == expected


def test_a_model_is_found_and_loaded_under_this_host_s_lock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of processes that load at once, some have been seen to get a model of empty layers."""
    from contextlib import contextmanager

    from embed.engine import model_cache
    from embed.models import families
    from embed.models.published import hub

    held: list[str] = []
    met: list[tuple[str, tuple[str, ...]]] = []

    @contextmanager
    def lock(name: str) -> Iterator[None]:
        held.append(name)
        yield
        held.remove(name)

    monkeypatch.setattr(model_cache, "host_lock", lock)
    for module, name in ((hub, "locate"), (families, "load")):
        real = getattr(module, name)

        def noted(*words: object, name: str = name, real: Callable[..., object] = real) -> object:
            met.append((name, tuple(held)))
            return real(*words)

        monkeypatch.setattr(module, name, noted)
    bench.embed(bench.file(fasta(SEQUENCES[:3])))
    assert met == [("locate", ("load",)), ("load", ("load",))]
    assert not held


def test_more_threads_than_cores_are_used_as_planned_with_a_warning(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    before = torch.get_num_threads()
    bench = make_bench(threads=2)
    try:
        bench.embed(bench.file(fasta(SEQUENCES[:3])))
        assert torch.get_num_threads() == 2
        assert bench.warnings[0].startswith(
            "planned with --threads 2, but this worker has only 1 core"
        )
    finally:
        torch.set_num_threads(before)


# ---- inputs and models that changed ----


def test_a_changed_input_fails_its_claim_and_loads_no_model(bench: Bench) -> None:
    path = bench.file(fasta(SEQUENCES))
    (item,) = bench.plan(path)
    bench.file(fasta(SEQUENCES).replace("id7\nM", "id7\nW"))
    with pytest.raises(ClaimImpossible, match="changed after it was planned"):
        bench.run(item)
    assert bench.handler.loaded() == []


def test_an_input_that_changes_while_it_is_embedded_is_read_as_planned(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read once, and checked; a claim too large to be kept in memory is checked again."""
    bench = make_bench(tokens_per_batch=10)
    sequences = [(f"id{n}", "MKVLA") for n in range(1000)]
    path = bench.file(fasta(sequences))
    (item,) = bench.plan(path)

    def changing() -> bool:
        with open(path, "r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b"W")
        return False

    undisturbed = bench.run(item)
    work = bench.work(item, stop=changing)
    work.output.unlink()
    bench.handler.run(work)
    assert work.output.read_bytes() == undisturbed
    work.output.unlink()
    Path(path).write_text(fasta(sequences))
    monkeypatch.setattr("embed.inputs.claims.KEPT_MAX", 100)
    monkeypatch.setattr("embed.models.encode_many.LETTERS", 100)
    with pytest.raises(ClaimImpossible, match="changed after it was planned"):
        bench.handler.run(work)
    assert not work.output.exists()


def test_a_changed_model_fails_the_claim(bench: Bench) -> None:
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    bench.options["weights"] = "sha256:0"
    with pytest.raises(ClaimImpossible, match="model changed since it was planned"):
        bench.run(item)


def test_a_machine_without_the_model_leaves_the_claim_to_others(bench: Bench) -> None:
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    bench.options["folder"] = str(bench.tmp_path / "gone")
    with pytest.raises(NotSupportedError, match="this machine lacks the planned model"):
        bench.run(item)


# ---- planning ----


def test_options_are_pinned_and_only_decisive_ones_enter_an_id(bench: Bench) -> None:
    options = bench.options
    assert options["model"] == "tiny_esm2"
    assert os.path.isabs(options["folder"])
    assert options["width"] == 32
    json.dumps(options)
    decisive = bench.handler.result_options(options)
    assert {"weights", "dtype", "max_residues", "tokens_per_batch", "threads"} <= decisive.keys()
    assert not {"folder", "checkpoint_seconds"} & decisive.keys()


@pytest.mark.parametrize("name", ["max_residues", "tokens_per_batch", "threads"])
def test_an_option_below_one_is_refused(make_bench: MakeBench, name: str) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        make_bench(**{name: -1})


@pytest.mark.parametrize(
    ("model", "dtype", "kind"),
    [
        ("facebook/esm2_t6_8M_UR50D", "float32", "esm2_t6_8m_ur50d"),
        ("facebook/esm2_t36_3B_UR50D", "bfloat16", "esm2_t36_3b_ur50d-bf16"),
        ("My Model (final) of a very long name!", "float16", "my_model_final_of_a_very_lon-f16"),
        ("...", "float32", "model"),
    ],
)
def test_the_kind_is_a_short_name_of_the_model(
    bench: Bench, model: str, dtype: str, kind: str
) -> None:
    bench.options |= {"model": model, "dtype": dtype}
    (item,) = bench.plan(bench.file(fasta([("a", "M")])))
    assert item.kind == kind
    assert len(item.kind) <= 32


def test_a_source_is_known_by_its_path_and_content(bench: Bench) -> None:
    def key(path: str) -> str:
        return bench.handler.survey(path, bench.options).key

    one = key(bench.file(b">a\nMKV\n"))
    assert key(bench.file(b">a\nMKV\n")) == one
    assert key(bench.file(b">a\nMKW\n")) != one
    assert key(bench.file(b">a\nMKV\n", "y.faa")) != one


def test_items_are_json_and_their_measures_add_up(bench: Bench, proteins: list[Path]) -> None:
    paths = [str(path) for path in proteins]
    items = bench.plan(*paths, cost_max=9000)
    for item in items:
        json.dumps([item.payload, item.identity])
    assert sum(item.measures["sequences"] for item in items) == 687
    assert sum(item.measures["residues"] for item in items) == 225_914
    sources = [bench.handler.survey(path, bench.options) for path in paths]
    assert sum(item.cost for item in items) == sum(source.cost for source in sources)
    identities = {hashlib.sha256(json.dumps(item.identity).encode()).hexdigest() for item in items}
    assert len(identities) == len(items)


def test_a_bad_input_is_refused_alone(bench: Bench) -> None:
    with pytest.raises(BadInput):
        bench.handler.survey(bench.file(b"no FASTA"), bench.options)
    with pytest.raises(BadInput):
        bench.handler.survey("-", bench.options)


def test_planning_imports_neither_torch_nor_transformers(tiny_model: Path, bench: Bench) -> None:
    code = (
        "import sys; from embed.handlers.embed import Embed, OPTIONS\n"
        "import embed; handler = Embed()\n"
        "options = {o.name: o.default for o in OPTIONS} | {'model': sys.argv[1]}\n"
        "options = handler.prepare(options); source = handler.survey(sys.argv[2], options)\n"
        "assert list(handler.cut([source], options, 10))\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tiny_model), bench.file(fasta(SEQUENCES))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""Merging a pool: every planned sequence once, in input order, and nothing dropped silently."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed.outputs.collect import Unfinished, collect
from embed.outputs.formats import FORMATS
from embed.outputs.merge import MergeRequest, merge
from fsqueue import FsqueueError, NotSupportedError, PoolReader, UsageError
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from tests.support.fake_embeddings import (
    FakeEmbed,
    embed_all,
    fasta,
    plan_embeddings,
    proteins,
    row,
    rows_of,
    token_rows,
)
from tests.support.pools import ManualWorker, names_in, work_until_done


def read_merged(path: Path, name: str = "embeddings") -> tuple[list[str], np.ndarray]:
    from safetensors.numpy import load_file

    found = load_file(path)
    text, cuts = found["ids"].tobytes(), found["id_offsets"]
    return [text[a:b].decode() for a, b in zip(cuts, cuts[1:], strict=False)], found[name]


# ---- one model ----


def test_rows_come_in_input_order_whatever_the_claims_were(tmp_path: Path) -> None:
    """One large file is cut, small ones are packed around it, and a second plan adds more."""
    large, small, last, later = (proteins(n, seed) for seed, n in enumerate((60, 3, 2, 4)))
    files = [
        fasta(tmp_path / "a_small.faa", small),
        fasta(tmp_path / "large.faa", large),
        fasta(tmp_path / "z_small.faa", last),
    ]
    embed_all(tmp_path / "pool", files)
    pool = embed_all(tmp_path / "pool", [fasta(tmp_path / "aa_later.faa", later)])
    claims = names_in(pool, State.DONE)
    assert len([name for name in claims if name.id.startswith("large-")]) > 2
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    ids, rows = read_merged(tmp_path / "out.safetensors")
    every = small | large | last | later
    assert ids == list(every)
    assert np.array_equal(rows, rows_of(every, 5))
    assert (result.rows, result.width, result.models) == (69, 5, ["tiny_esm2"])
    assert result.notes == []


def test_the_merged_file_has_the_metadata_of_its_outputs(tmp_path: Path) -> None:
    from safetensors import safe_open

    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(40))])
    merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["model"] == "tiny_esm2"
    assert json.loads(metadata["counts"]) == {"sequences": 40}


def test_files_without_sequences_and_repeated_ids_are_merged(tmp_path: Path) -> None:
    files = [
        fasta(tmp_path / "empty.faa", {}),
        fasta(tmp_path / "twice.faa", [("a", "MK"), ("a", "MV"), ("b", "L")]),
        fasta(tmp_path / "empty2.faa", {}),
    ]
    embed_all(tmp_path / "pool", files)
    merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    ids, rows = read_merged(tmp_path / "out.safetensors")
    assert ids == ["a", "a", "b"]
    assert np.array_equal(rows[1], row("a", b"MV", 5))


@pytest.mark.parametrize("format", FORMATS)
def test_the_format_is_an_option_or_follows_from_the_file_s_name(
    tmp_path: Path, format: str
) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(2))])
    merge(str(tmp_path / "pool"), str(tmp_path / f"named.{format}"))
    merge(str(tmp_path / "pool"), str(tmp_path / "by_option"), MergeRequest(format=format))
    by_name, by_option = (
        (tmp_path / f"named.{format}").read_bytes(),
        (tmp_path / "by_option").read_bytes(),
    )
    assert by_name[:4] == by_option[:4]
    assert len(by_name) == len(by_option)


def test_the_plan_s_format_is_the_default(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(2))], format="npz")
    merge(str(tmp_path / "pool"), str(tmp_path / "out"))
    assert np.load(tmp_path / "out")["ids"].tolist() == ["p0_0", "p0_1"]


def test_merging_again_replaces_the_file_whole(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(2))])
    merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    embed_all(tmp_path / "pool", [fasta(tmp_path / "b.faa", proteins(3, seed=1))])
    merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    assert np.load(tmp_path / "out.npz")["embeddings"].shape == (5, 5)
    assert sorted(os.listdir(tmp_path)) == ["a.faa", "b.faa", "out.npz", "pool"]


# ---- every planned sequence, once ----


def test_a_pool_that_is_not_done_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    pool = plan_embeddings(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(40))])
    hand = ManualWorker(pool, handler=FakeEmbed())
    hand.run(hand.take())
    waiting = len(names_in(pool, State.WAITING))
    with pytest.raises(Unfinished, match=rf"{waiting} claims are not done.*--partial") as caught:
        merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    assert caught.value.exit_status == 5
    assert not (tmp_path / "out.npz").exists()


def test_a_pool_with_only_failed_claims_left_has_its_own_exit_status(tmp_path: Path) -> None:
    pool = plan_embeddings(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(2))])
    fail_one(pool)
    work_until_done(pool, handler=FakeEmbed())
    with pytest.raises(Unfinished, match=r"\(1 failed\)") as caught:
        merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    assert caught.value.exit_status == 3


def fail_one(pool: Any, stem: str = "") -> ClaimName:
    """Cancel one of the claims that wait."""
    from fsqueue.pool import claims
    from fsqueue.pool.settings import spool_names

    for spool in spool_names(pool):
        for name in sorted(claims.waiting(pool, spool), key=str):
            if name.id.startswith(stem):
                assert claims.cancel(pool, spool, name, "test")
                return name
    raise AssertionError("nothing waits")


def test_partial_merges_what_is_done_and_reports_what_is_missing(tmp_path: Path) -> None:
    first, second = proteins(40), proteins(30, 1)
    files = [fasta(tmp_path / "a.faa", first), fasta(tmp_path / "b.faa", second)]
    pool = plan_embeddings(tmp_path / "pool", files)
    fail_one(pool, "b-")
    work_until_done(pool, handler=FakeEmbed())
    result = merge(
        str(tmp_path / "pool"), str(tmp_path / "out.safetensors"), MergeRequest(partial=True)
    )
    ids, rows = read_merged(tmp_path / "out.safetensors")
    kept = [id for id in [*first, *second] if id in set(ids)]
    assert ids == kept
    assert ids[:40] == list(first)
    assert 40 < len(ids) < 70
    assert np.array_equal(rows, rows_of({id: (first | second)[id] for id in ids}, 5))
    assert [note.split(":")[0] for note in result.notes] == [str(tmp_path / "b.faa")]


def test_an_output_that_was_removed_or_replaced_is_detected(tmp_path: Path) -> None:
    pool = embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(40))])
    one, two, *_ = sorted(Path(pool.directory("outputs")).glob("*.safetensors"))
    kept = one.read_bytes()
    os.unlink(one)
    with pytest.raises(FsqueueError, match="missing or damaged"):
        merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    one.write_bytes(two.read_bytes() if two.read_bytes() != kept else b"")
    if len(one.read_bytes()) != len(kept):
        with pytest.raises(FsqueueError, match=r"planned|missing or damaged"):
            merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()


def test_parts_of_a_file_that_do_not_join_are_refused(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(40))])
    (found,) = collect(str(tmp_path / "pool"))
    (source,) = found.inputs.values()
    assert len(source.pieces) > 2
    del source.pieces[1]
    with pytest.raises(FsqueueError, match="do not join"):
        found.table()


def test_an_input_that_changed_and_was_planned_again_takes_its_last_place(
    tmp_path: Path,
) -> None:
    path = fasta(tmp_path / "a.faa", {"old": "MKV"})
    embed_all(tmp_path / "pool", [path, fasta(tmp_path / "b.faa", {"b": "MM"})])
    fasta(path, {"new": "MKVL", "more": "M"})
    embed_all(tmp_path / "pool", [path])
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    assert read_merged(tmp_path / "out.safetensors")[0] == ["b", "new", "more"]
    assert result.notes == [f"{path}: was planned more than once; the last plan is used"]


def test_unfinished_claims_of_a_superseded_plan_do_not_matter(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.faa", {"old": "MKV"})
    pool = plan_embeddings(tmp_path / "pool", [path])
    fail_one(pool)
    fasta(path, {"new": "MKVL"})
    embed_all(tmp_path / "pool", [path])
    merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    assert read_merged(tmp_path / "out.safetensors")[0] == ["new"]


def test_a_directory_without_embeddings_is_refused(tmp_path: Path) -> None:
    from fsqueue.pool.settings import create_pool

    with pytest.raises(UsageError, match="is not a pool"):
        merge(str(tmp_path), "out")
    create_pool(str(tmp_path / "pool"))
    with pytest.raises(UsageError, match="holds no embeddings"):
        merge(str(tmp_path / "pool"), "out")


def test_memory_does_not_grow_with_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are read a block at a time in every format."""
    from embed.outputs import table

    monkeypatch.setattr(table, "BLOCK_BYTES", 4 * 5)
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(40))])
    (found,) = collect(str(tmp_path / "pool"))
    table = found.table()
    assert max(part.count for part in table.parts) > 1
    assert max(len(block.ids) for block in table.blocks()) == 1


# ---- two models ----


def both(tmp_path: Path, dna: dict[str, str], protein: dict[str, str]) -> str:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "x_protein.faa", protein)])
    embed_all(tmp_path / "pool", [fasta(tmp_path / "x_nucleotide.fa", dna)], "dnabert")
    return str(tmp_path / "pool")


def test_two_models_are_paired_by_id_dna_first(tmp_path: Path) -> None:
    protein = proteins(40)
    dna = dict.fromkeys(reversed(protein), "ACGT")
    result = merge(both(tmp_path, dna, protein), str(tmp_path / "out.safetensors"))
    ids, rows = read_merged(tmp_path / "out.safetensors", "data")
    assert ids == list(dna)
    expected = [rows_of(dna, 3), rows_of({id: protein[id] for id in dna}, 5)]
    assert np.array_equal(rows, np.concatenate(expected, axis=1))
    assert (result.models, result.width) == (["tiny_dna", "tiny_esm2"], 8)
    assert result.unmatched == [0, 0]


def test_sequences_without_a_partner_are_listed_beside_the_table(tmp_path: Path) -> None:
    pool = both(tmp_path, {"a": "AC", "b": "GT", "c": "TT"}, {"c": "MK", "d": "M", "a": "V"})
    result = merge(pool, str(tmp_path / "out.safetensors"))
    ids, rows = read_merged(tmp_path / "out.safetensors", "data")
    assert ids == ["a", "c"]
    assert rows.shape == (2, 8)
    listed = (tmp_path / "out.safetensors.unmatched.tsv").read_text()
    assert listed == "b\ttiny_dna\nd\ttiny_esm2\n"
    assert result.unmatched == [1, 1]
    assert "2 sequences have a row from only one of the models" in result.notes[0]


def test_models_without_an_id_in_common_are_not_merged_into_nothing(tmp_path: Path) -> None:
    pool = both(tmp_path, {"a": "AC"}, {"b": "MK"})
    with pytest.raises(UsageError, match="tiny_dna and tiny_esm2 have no id in common"):
        merge(pool, str(tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()


def test_one_of_several_models_can_be_chosen(tmp_path: Path) -> None:
    pool = both(tmp_path, {"a": "AC"}, {"b": "MK"})
    merge(pool, str(tmp_path / "out.safetensors"), MergeRequest(model="tiny_esm2"))
    assert read_merged(tmp_path / "out.safetensors")[0] == ["b"]
    with pytest.raises(UsageError, match=r"--model nope: .* has tiny_dna.*, tiny_esm2"):
        merge(pool, str(tmp_path / "out.npz"), MergeRequest(model="nope"))


def test_three_models_must_be_chosen_from(tmp_path: Path) -> None:
    pool = both(tmp_path, {"a": "AC"}, {"a": "MK"})
    embed_all(
        tmp_path / "pool", [tmp_path / "x_protein.faa"], weights="sha256:other", dtype="float16"
    )
    with pytest.raises(UsageError, match=r"3 models .*--model"):
        merge(pool, str(tmp_path / "out.npz"))


def test_options_that_change_only_last_digits_do_not_divide_a_table(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MK"})], threads=1)
    embed_all(tmp_path / "pool", [fasta(tmp_path / "b.faa", {"b": "MK"})], threads=2)
    merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    assert read_merged(tmp_path / "out.safetensors")[0] == ["a", "b"]


# ---- virnucpro: read back as the pipeline's merge and prediction do ----


def read_esm(path: Path) -> dict[str, list[float]]:
    """What a reader that knows nothing but the format does."""
    assert Path(f"{path}.done").stat().st_size == 0
    found = torch.load(path, weights_only=True)
    assert set(found) == {"proteins", "data", "version", "status"}
    assert (found["version"], found["status"]) == ("1.0", "complete")
    assert isinstance(found["data"], list)
    for tensor in found["data"]:
        assert tensor.dtype == torch.float32
        assert tensor.dim() == 1
        assert tensor.untyped_storage().nbytes() == 4 * len(tensor)
    ids = found["proteins"]
    return {id: t.tolist() for id, t in zip(ids, found["data"], strict=True)}


def read_dnabert(path: Path) -> dict[str, list[float]]:
    assert Path(f"{path}.done").stat().st_size == 0
    found = torch.load(path, weights_only=True)
    assert set(found) == {"nucleotide", "data", "version", "status"}
    assert [entry["label"] for entry in found["data"]] == found["nucleotide"]
    assert all(type(x) is float for entry in found["data"] for x in entry["mean_representation"])
    return {entry["label"]: entry["mean_representation"] for entry in found["data"]}


def test_features_are_one_file_for_each_input_whatever_its_claims_were(tmp_path: Path) -> None:
    large, one, two = proteins(60), proteins(3, 1), proteins(2, 2)
    files = [
        fasta(tmp_path / "in" / "output_1.fa", one),
        fasta(tmp_path / "in" / "output_2.fa", large),
        fasta(tmp_path / "in" / "output_10.fa", two),
    ]
    embed_all(tmp_path / "pool", files)
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    names = sorted(os.listdir(tmp_path / "out"))
    stems = ["output_1", "output_10", "output_2"]
    expected = [f"{stem}_ESM.pt{end}" for stem in stems for end in ("", ".done")]
    assert names == sorted(expected)
    for stem, sequences in (("output_1", one), ("output_2", large), ("output_10", two)):
        found = read_esm(tmp_path / "out" / f"{stem}_ESM.pt")
        assert list(found) == list(sequences)
        assert list(found.values()) == rows_of(sequences, 5).tolist()
    assert result.rows == 65


def test_both_models_features_and_their_pairs_are_written(tmp_path: Path) -> None:
    protein = proteins(12)
    dna = dict.fromkeys(protein, "ACGT")
    for number in (1, 2):
        mine = slice(6 * (number - 1), 6 * number)
        for folder, every, family in (("p", protein, "esm2"), ("n", dna, "dnabert")):
            part = dict(list(every.items())[mine])
            path = fasta(tmp_path / folder / f"output_{number}.fa", part)
            embed_all(tmp_path / "pool", [path], family)
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    for number in (1, 2):
        stem = tmp_path / "out" / f"output_{number}"
        esm, other = read_esm(Path(f"{stem}_ESM.pt")), read_dnabert(Path(f"{stem}_DNABERT_S.pt"))
        merged = torch.load(f"{stem}_merged.pt", weights_only=True)
        assert set(merged) == {"ids", "data"}
        assert merged["data"].dtype == torch.float32
        expected = [other[id] + esm[id] for id in merged["ids"]]
        assert merged["data"].tolist() == expected
        assert merged["ids"] == list(protein)[6 * (number - 1) : 6 * number]
    assert (result.rows, result.width, len(result.files)) == (12, 8, 6)


def test_prepared_files_are_paired_though_their_names_differ(tmp_path: Path) -> None:
    pool = both(tmp_path, {"a": "AC", "b": "GT"}, {"b": "MK", "c": "M"})
    result = merge(pool, str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    merged = torch.load(tmp_path / "out" / "x_merged.pt", weights_only=True)
    assert merged["ids"] == ["b"]
    assert merged["data"].shape == (1, 8)
    assert result.unmatched == [1, 1]
    assert (tmp_path / "out" / "x_merged.pt.unmatched.tsv").read_text().splitlines() == [
        "a\ttiny_dna",
        "c\ttiny_esm2",
    ]


def test_an_input_of_only_one_model_is_reported(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "p" / "one.fa", {"a": "MK"})])
    files = [fasta(tmp_path / "n" / f"{name}.fa", {"a": "AC"}) for name in ("one", "two")]
    embed_all(tmp_path / "pool", files, "dnabert")
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    assert result.notes == ["two: only tiny_dna has an input of this name; it is not merged"]
    assert (tmp_path / "out" / "two_DNABERT_S.pt.done").exists()


def test_an_input_without_sequences_gives_well_formed_files(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "p" / "x.fa", {})])
    embed_all(tmp_path / "pool", [fasta(tmp_path / "n" / "x.fa", {})], "dnabert")
    merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    assert read_esm(tmp_path / "out" / "x_ESM.pt") == {}
    assert read_dnabert(tmp_path / "out" / "x_DNABERT_S.pt") == {}
    merged = torch.load(tmp_path / "out" / "x_merged.pt", weights_only=True)
    assert merged["data"].shape == (0, 8)


def test_an_input_that_is_not_done_gets_no_file_and_no_marker(tmp_path: Path) -> None:
    files = [fasta(tmp_path / f"{n}.faa", proteins(40, seed)) for seed, n in enumerate("ab")]
    pool = plan_embeddings(tmp_path / "pool", files)
    fail_one(pool, "b-")
    work_until_done(pool, handler=FakeEmbed())
    merge(
        str(tmp_path / "pool"),
        str(tmp_path / "out"),
        MergeRequest(format="virnucpro", partial=True),
    )
    assert sorted(os.listdir(tmp_path / "out")) == ["a_ESM.pt", "a_ESM.pt.done"]


def test_inputs_of_one_name_in_different_folders_keep_their_folders(tmp_path: Path) -> None:
    files = [fasta(tmp_path / f / "output_1.fa", {f: "MK"}) for f in ("one", "two")]
    embed_all(tmp_path / "pool", files)
    merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    assert list(read_esm(tmp_path / "out" / "two" / "output_1_ESM.pt")) == ["two"]


def test_inputs_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    files = [fasta(tmp_path / f"x.{end}", {end: "MK"}) for end in ("fa", "faa")]
    embed_all(tmp_path / "pool", files)
    with pytest.raises(UsageError, match="would both be 'x'"):
        merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))


def test_a_file_too_large_for_this_format_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.outputs import virnucpro

    monkeypatch.setattr(virnucpro, "VIRNUCPRO_ROWS_MAX", 3)
    embed_all(tmp_path / "pool", [fasta(tmp_path / "x.faa", proteins(4))])
    with pytest.raises(UsageError, match="--split"):
        merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))


# ---- what readers see of a pool ----


def test_a_reader_sees_every_claim_where_it_stands(tmp_path: Path) -> None:
    pool = plan_embeddings(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(40))])
    hand = ManualWorker(pool, handler=FakeEmbed())
    hand.run(hand.take())
    taken = hand.take()
    lost = fail_one(pool)
    reader = PoolReader(str(tmp_path / "pool"))
    (plan,) = reader.plans("embed")
    claims = {claim.id: claim for claim in reader.claims(plan)}
    states = [claim.state for claim in claims.values()]
    assert states.count("done") == states.count("running") == states.count("failed") == 1
    assert states.count("waiting") == len(states) - 3 > 0
    assert (claims[taken.id].state, claims[lost.id].state) == ("running", "failed")
    assert plan.inputs == (str(tmp_path / "a.faa"),)
    for claim in claims.values():
        assert reader.payload(claim)["segments"][0]["path"] == str(tmp_path / "a.faa")
        assert os.path.exists(claim.output) == (claim.state == "done")
    assert reader.plans("command") == []


def test_a_claim_that_moves_while_the_pool_is_read_is_reported_as_changing_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = plan_embeddings(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(4))])
    whole = PoolReader.claims

    def claims(reader: PoolReader, plan: Any) -> Any:
        found = list(whole(reader, plan))
        work_until_done(pool, handler=FakeEmbed())
        return iter(found)

    monkeypatch.setattr(PoolReader, "claims", claims)
    with pytest.raises(Unfinished, match="changing its state"):
        merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    assert issubclass(NotSupportedError, FsqueueError)


# ---- a row for each token ----


def ragged_pool(root: Path, sequences: dict[str, str]) -> Path:
    """Embed a file that is cut into claims and a small one, with a made-up row for each letter."""
    plain = fasta(root / "large.faa", sequences)
    small = fasta(root / "small.faa", {"s/1": "MKV", "none": "", "s 2": "MK"})
    embed_all(root / "pool", [plain, small], pooling="per-token")
    return root / "pool"


def test_rows_for_each_token_are_joined_into_one_ragged_table(tmp_path: Path) -> None:
    from embed import read

    sequences = proteins(60, length=150) | {"again": "W", "empty": "", "dup": "MM"}
    pool = ragged_pool(tmp_path, sequences)
    assert len(list((pool / "outputs").glob("*.safetensors"))) > 2
    result = merge(str(pool), str(tmp_path / "out.safetensors"))
    table = read(tmp_path / "out.safetensors")
    every = [*sequences.items(), ("s/1", "MKV"), ("none", ""), ("s", "MK")]
    assert table.ids == [id for id, _ in every]
    assert result.rows == len(every)
    cuts = table.columns["offsets"]
    assert len(cuts) == len(every) + 1 and cuts[-1] == len(table.rows)
    for n, (id, residues) in enumerate(every):
        expected = token_rows(id, residues.encode(), 5)
        assert np.array_equal(table.rows[cuts[n] : cuts[n + 1]], expected)


@pytest.mark.parametrize("format", ["npz", "parquet", "virnucpro"])
def test_other_formats_cannot_hold_a_row_for_each_token(tmp_path: Path, format: str) -> None:
    pool = ragged_pool(tmp_path, {"a": "MKVLA"})
    with pytest.raises(UsageError, match="cannot hold a row for each token"):
        merge(str(pool), str(tmp_path / "out"), MergeRequest(format=format))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_rows_for_each_token_are_not_paired(tmp_path: Path) -> None:
    pool = ragged_pool(tmp_path, {"a": "MKVLA"})
    embed_all(pool, [fasta(tmp_path / "x.fa", {"a": "ACGT"})], "dnabert")
    with pytest.raises(UsageError, match="one model at a time"):
        merge(str(pool), str(tmp_path / "out.safetensors"))
    merge(str(pool), str(tmp_path / "out.safetensors"), MergeRequest(model="tiny_esm2"))


# ---- R36-R38: what is in the way ----


@pytest.mark.parametrize("force", [False, True])
def test_R36_a_merge_never_replaces_an_input(tmp_path: Path, force: bool) -> None:
    path = fasta(tmp_path / "q.npz", {"a": "MKV"})  # whatever it is called
    embed_all(tmp_path / "pool", [path])
    (tmp_path / "link.npz").hardlink_to(path)
    before = path.read_bytes()
    for name in ("q.npz", "link.npz"):
        with pytest.raises(UsageError, match="is the input"):
            merge(str(tmp_path / "pool"), str(tmp_path / name), MergeRequest(force=force))
    assert path.read_bytes() == before


@pytest.mark.parametrize("format", [*FORMATS])
def test_R37_a_merge_replaces_only_tables_of_its_own(tmp_path: Path, format: str) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    out = tmp_path / f"out.{format}"
    out.write_text("id,value\na,1\n")
    with pytest.raises(UsageError, match="never replaces"):
        merge(str(tmp_path / "pool"), str(out), MergeRequest(force=True))
    assert out.read_text() == "id,value\na,1\n"
    out.write_bytes(b"")
    for _ in range(2):
        merge(str(tmp_path / "pool"), str(out))


@pytest.mark.parametrize("format", [*FORMATS])
def test_R38_a_table_of_another_model_is_replaced_only_by_force(
    tmp_path: Path, format: str
) -> None:
    path = fasta(tmp_path / "a.faa", {"a": "MKV"})
    embed_all(tmp_path / "one", [path])
    embed_all(tmp_path / "two", [path], weights="sha256:other")
    out = str(tmp_path / f"out.{format}")
    merge(str(tmp_path / "one"), out)
    with pytest.raises(UsageError, match="--force"):
        merge(str(tmp_path / "two"), out)
    merge(str(tmp_path / "two"), out, MergeRequest(force=True))


def test_R37_an_array_that_someone_saved_is_not_a_table(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    out = tmp_path / "out.npz"
    np.savez(out, weights=np.ones(3))
    with pytest.raises(UsageError, match="never replaces"):
        merge(str(tmp_path / "pool"), str(out))
    assert np.load(out)["weights"].tolist() == [1, 1, 1]


def test_R37_a_folder_of_features_keeps_files_that_are_not_features(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_ESM.pt").write_text("weights of mine")
    with pytest.raises(UsageError, match="never replaces"):
        merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))
    assert os.listdir(tmp_path / "out") == ["a_ESM.pt"]
    (tmp_path / "out" / "a_ESM.pt").unlink()
    for _ in range(2):
        merge(str(tmp_path / "pool"), str(tmp_path / "out"), MergeRequest(format="virnucpro"))


def test_R37_the_list_of_unmatched_sequences_replaces_only_its_own(tmp_path: Path) -> None:
    pool = both(tmp_path, {"a": "AC", "b": "GT"}, {"a": "MK"})
    listing = tmp_path / "out.npz.unmatched.tsv"
    listing.write_text("notes of mine\n")
    with pytest.raises(UsageError, match="never replaces"):
        merge(pool, str(tmp_path / "out.npz"))
    assert listing.read_text() == "notes of mine\n" and not (tmp_path / "out.npz").exists()
    listing.unlink()
    for _ in range(2):
        merge(pool, str(tmp_path / "out.npz"))


def test_R37_nothing_is_merged_into_the_pool_itself(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    with pytest.raises(UsageError, match="inside the pool"):
        merge(str(tmp_path / "pool"), str(tmp_path / "pool" / "outputs" / "all.npz"))


# ---- R40: the ending is the format ----


@pytest.mark.parametrize("ending", ["npy", "pt", "csv", "pq", "faa", "json"])
@pytest.mark.parametrize("format", [None, "safetensors"])
def test_R40_an_ending_that_promises_another_format_is_refused(
    tmp_path: Path, ending: str, format: str | None
) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    with pytest.raises(
        UsageError, match=r"Known are \.safetensors, \.npz, \.h5, \.hdf5, \.parquet"
    ):
        merge(str(tmp_path / "pool"), str(tmp_path / f"x.{ending}"), MergeRequest(format=format))
    assert not (tmp_path / f"x.{ending}").exists()


def test_R40_a_format_that_contradicts_the_ending_is_refused(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    for format in ("h5", "virnucpro"):
        with pytest.raises(UsageError, match="contradicts the ending"):
            merge(str(tmp_path / "pool"), str(tmp_path / "x.npz"), MergeRequest(format=format))


def test_R40_an_unknown_ending_needs_a_format(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MKV"})])
    with pytest.raises(UsageError, match="is not the ending of a format"):
        merge(str(tmp_path / "pool"), str(tmp_path / "all.v2"))
    merge(str(tmp_path / "pool"), str(tmp_path / "all.v2"), MergeRequest(format="npz"))


# ---- R41: what is joined ----


def poolings(tmp_path: Path) -> str:
    path = fasta(tmp_path / "a.faa", {"a": "MKV", "b": "MK"})
    for pooling in ("mean", "cls", "max"):
        embed_all(tmp_path / "pool", [path], pooling=pooling)
    return str(tmp_path / "pool")


def test_R41_poolings_of_one_model_are_a_choice_that_names_the_difference(tmp_path: Path) -> None:
    pool = poolings(tmp_path)
    with pytest.raises(
        UsageError,
        match=r"one of plan 1 \(pooling=mean\), plan 2 \(pooling=cls\), plan 3 \(pooling=max\)",
    ):
        merge(pool, str(tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()


def test_R41_two_poolings_are_not_joined_unless_asked_for(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.faa", {"a": "MKV"})
    embed_all(tmp_path / "pool", [path])
    embed_all(tmp_path / "pool", [path], pooling="cls")
    with pytest.raises(UsageError, match=r"plan 1 \(pooling=mean\), plan 2 \(pooling=cls\)"):
        merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"))
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out.npz"), MergeRequest(plans=(1, 2)))
    assert result.width == 10


@pytest.mark.parametrize(
    "how",
    [
        {"plans": (2,)},
        {"options": {"pooling": "cls"}},
        {"options": {"pooling": "cls"}, "plans": (2,)},
    ],
)
def test_R41_a_table_is_chosen_by_its_plan_or_by_what_differs(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    pool = poolings(tmp_path)
    assert merge(pool, str(tmp_path / "out.npz"), MergeRequest(**how)).width == 5
    metadata = json.loads(str(np.load(tmp_path / "out.npz")["metadata"]))
    assert metadata["pooling"] == "cls"


@pytest.mark.parametrize("how", [{"plans": (7,)}, {"options": {"pooling": "median"}}])
def test_R41_a_choice_that_nothing_has_is_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"choose one of plan 1 \(pooling=mean\)"):
        merge(poolings(tmp_path), str(tmp_path / "out.npz"), MergeRequest(**how))


# ---- R43-R45: inputs that changed, claims that were given up ----


def test_R44_the_neighbours_of_a_changed_input_are_merged_once(tmp_path: Path) -> None:
    a, b = (fasta(tmp_path / f"{n}.faa", {n: "MKV"}) for n in "ab")
    plan_embeddings(tmp_path / "pool", [a, b])
    fasta(a, {"new": "MKVL"})
    embed_all(tmp_path / "pool", [a])
    merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    ids, rows = read_merged(tmp_path / "out.safetensors")
    assert sorted(ids) == ["b", "new"]
    assert np.array_equal(rows, rows_of({id: {"b": "MKV", "new": "MKVL"}[id] for id in ids}, 5))


def test_R45_an_input_that_is_as_it_was_is_merged_as_it_was(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.faa", {"old": "MKV"})
    plan_embeddings(tmp_path / "pool", [path])
    fasta(path, {"new": "MKVL"})
    plan_embeddings(tmp_path / "pool", [path])
    fasta(path, {"old": "MKV"})
    embed_all(tmp_path / "pool", [path])
    merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    assert read_merged(tmp_path / "out.safetensors")[0] == ["old"]


def test_R43_the_sequences_of_a_forgotten_claim_are_left_out_and_named(tmp_path: Path) -> None:
    from fsqueue.maintenance import repair

    files = [fasta(tmp_path / f"{n}.faa", proteins(12, n)) for n in range(3)]
    pool = plan_embeddings(tmp_path / "pool", files)
    fail_one(pool)
    work_until_done(pool, handler=FakeEmbed())
    with pytest.raises(Unfinished):
        merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    repair.forget(pool)
    result = merge(str(tmp_path / "pool"), str(tmp_path / "out.safetensors"))
    assert 0 < result.rows < 36
    assert any("claims of it were forgotten" in note for note in result.notes)

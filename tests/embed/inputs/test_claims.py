"""Claims hold every block once, in order, and none costs more than necessary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.inputs import claims
from embed.inputs.claims import draft_claims
from embed.inputs.fasta_scan import BLOCK, Scan


def made(name: str, costs: list[int], sequences: int = 2) -> Scan:
    blocks = np.zeros(len(costs), BLOCK)
    blocks["cost"], blocks["length"], blocks["sequences"] = costs, 10, sequences
    blocks["start"] = np.arange(len(costs)) * 10
    blocks["digest"] = np.array([bytes([i % 256]) * 32 for i in range(len(costs))], "V32")
    return Scan(f"/data/{name}.faa", blocks, "", 0)


FILES = st.lists(st.lists(st.integers(1, 100), max_size=12), max_size=8)


@given(files=FILES, cost_max=st.integers(1, 300))
def test_every_block_is_in_one_claim_in_order(files: list[list[int]], cost_max: int) -> None:
    scans = [made(f"f{number}", costs) for number, costs in enumerate(files)]
    found = list(draft_claims(scans, cost_max))
    segments = [segment for draft in found for segment in draft.segments]
    for scan, costs in zip(scans, files, strict=True):
        of_file = [segment for segment in segments if segment.path == scan.path]
        assert sum(len(segment.lengths) for segment in of_file) == len(costs)
        starts = [segment.start for segment in of_file]
        assert starts == sorted(starts)
    assert sum(draft.cost for draft in found) == sum(map(sum, files))
    for draft in found:
        single = len(draft.segments) == 1 and len(draft.segments[0].lengths) == 1
        assert draft.cost <= cost_max or single
    assert [draft.stem for draft in draft_claims(scans, cost_max)] == [
        draft.stem for draft in found
    ]


def test_a_large_file_is_cut_into_nearly_equal_parts() -> None:
    found = list(draft_claims([made("big", [10] * 100)], 140))
    assert [draft.cost for draft in found] == [120, 130, 120, 130, 120, 130, 120, 130] or all(
        110 <= draft.cost <= 140 for draft in found
    )
    assert len(found) == 8
    assert [draft.stem for draft in found][:2] == ["big-1", "big-2"]


def test_small_files_are_packed_and_named_after_the_first() -> None:
    scans = [made(name, [10]) for name in "abcde"]
    assert [draft.stem for draft in draft_claims(scans, 30)] == ["a-and-2-more", "d-and-1-more"]


def test_a_file_without_sequences_is_still_in_a_claim() -> None:
    (draft,) = draft_claims([made("empty", [])], 100)
    assert (draft.stem, draft.sequences, draft.cost) == ("empty", 0, 0)
    assert draft.segments[0].lengths == ()


def test_a_claim_holds_a_bounded_number_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SEQUENCES_MAX", 10)
    assert max(draft.sequences for draft in draft_claims([made("many", [1] * 50)], 10**9)) == 10
    few = [made(f"f{number}", [1, 1]) for number in range(9)]
    assert [draft.sequences for draft in draft_claims(few, 10**9)] == [8, 8, 8, 8, 4]


def test_stems_drop_endings_and_stay_short() -> None:
    scans = [made("x" * 90, [1]), Scan("/d/genome.faa.gz", made("g", [9]).blocks, "", 0)]
    assert [draft.stem for draft in draft_claims(scans, 5)] == ["x" * 40, "genome"]


def test_real_files_are_cut_as_planned(proteins: list[Path]) -> None:
    from embed.inputs.fasta_scan import scan

    scans = [scan(str(path), lambda lengths: np.minimum(lengths, 1022) + 2) for path in proteins]
    total = sum(found.total("cost") for found in scans)
    found = list(draft_claims(scans, total // 16))
    assert sum(draft.sequences for draft in found) == 687
    assert 16 <= len(found) <= 24

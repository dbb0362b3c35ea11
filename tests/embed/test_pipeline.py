"""Real proteins and a real genome through both models: every sequence once, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.dnabert import write_model
from tests.support.pipeline import genome_of_pyrodigal, proteins_of_pyhmmer, run_pipeline


@pytest.mark.slow
def test_proteins_and_a_genome_go_through_both_models_and_none_is_lost(
    tmp_path: Path, tiny_model: Path
) -> None:
    """A part of scripts/bench/pipeline.py, which takes the whole of both."""
    records = proteins_of_pyhmmer().read_text().split(">")[1:]
    chosen = [r for r in records if len(r) > 1150 or "X" in r.partition("\n")[2]][:40]
    odd = [f"odd/{n} twice\n{text}\n" for n, text in enumerate(("MK*VL", "*", "UOBZJX-.", "mkv"))]
    part = tmp_path / "part.faa"
    part.write_text(">" + ">".join([*chosen, *records[:100], *odd, *odd]))
    write_model(tmp_path / "tiny_dnabert")
    found = run_pipeline(
        tmp_path,
        part,
        genome_of_pyrodigal("_100kb"),
        esm=tiny_model,
        dnabert=tmp_path / "tiny_dnabert",
    )
    assert found.protein.sound, found.protein
    assert found.dna.sound, found.dna
    assert found.protein.files["truncated"] > 10 and found.protein.files["empty"] == 2
    assert found.protein.files["unknown_residues"] == 4  # two stars inside, two J
    assert found.protein.table["duplicate_ids"] >= 4
    frames = found.prepared["frames"]
    assert found.dna.files["sequences"] == found.pairs == frames > 100
    assert found.unmatched == [0, len(chosen) + 108]
    assert found.claims > 16

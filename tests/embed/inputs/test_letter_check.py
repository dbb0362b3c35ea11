"""What a model cannot be meant to read is refused when it is planned; the rest is said."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embed import Encoder
from fsqueue import BadInput, UsageError
from tests.embed.conftest import Bench, fasta
from tests.support import dnabert

MakeBench = Callable[..., Bench]
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ"


def dna(length: int, letters: str = "ACGT") -> str:
    return "".join(random.Random(length).choices(letters, k=length))


@pytest.fixture
def dna_bench(make_bench: MakeBench, tmp_path: Path) -> Bench:
    dnabert.write_model(tmp_path / "dnabert")
    return make_bench(model=str(tmp_path / "dnabert"))


def notes(bench: Bench, sequences: list[tuple[str, str]]) -> list[str]:
    source = bench.handler.survey(bench.file(fasta(sequences)), bench.options)
    return [note.partition(": ")[2] for note in source.notes]


@pytest.mark.parametrize("letters", ["ACGT", "acgt", "ACGU", "ACGTN"])
def test_dna_for_a_protein_model_is_refused_with_how_to_translate_it(
    bench: Bench, letters: str
) -> None:
    with pytest.raises(BadInput, match=r"is DNA or RNA \(100 %.*fsqueue embed prepare"):
        notes(bench, [("a", dna(150, letters)), ("b", dna(151, letters))])


def test_proteins_for_a_dna_model_are_refused(dna_bench: Bench) -> None:
    with pytest.raises(BadInput, match="holds proteins .*--model facebook/esm2"):
        notes(dna_bench, [("a", PROTEIN * 5)])


def test_short_peptides_and_ambiguous_bases_are_read(bench: Bench, dna_bench: Bench) -> None:
    assert notes(bench, [("a", "GATTACA"), ("b", "ACGT")]) == []
    (note,) = notes(dna_bench, [("a", dna(500)), ("b", "ACGTRYSWKMBDHVN" * 20)])
    assert note.startswith("220 letters in 1 of its sequences are outside")


@pytest.mark.parametrize("token", ["<mask>", "<cls>", "<eos>"])
def test_a_special_token_written_in_a_sequence_is_refused(bench: Bench, token: str) -> None:
    with pytest.raises(BadInput, match=f"sequence 'b' contains {token}, which would be read as"):
        notes(bench, [("a", PROTEIN), ("b", f"MK{token}VL")])


def test_letters_that_cannot_be_read_are_counted(bench: Bench) -> None:
    (note,) = notes(bench, [("a", "MKJV*X"), ("b", "MKJ1"), ("c", PROTEIN)])
    assert note.startswith("4 letters in 2 of its sequences are outside the model's vocabulary")


def test_a_sequence_of_letters_that_mean_nothing_is_counted(bench: Bench, dna_bench: Bench) -> None:
    assert notes(bench, [("a", "XXXX"), ("b", "MKX"), ("c", "NNN")]) == [
        "1 sequence has nothing but X; the vector will mean nothing"
    ]
    sequences = [("a", "N" * 50), ("b", "nnnn"), ("c", "ACGTN")]
    assert notes(dna_bench, sequences)[-1] == (
        "2 sequences have nothing but N; the vector will mean nothing"
    )
    found = dna_bench.embed(dna_bench.file(fasta(sequences)))
    assert found.columns["flags"].tolist() == [4 | 16, 4 | 16, 4]
    assert any("2 sequences have only letters that stand" in line for line in dna_bench.warnings)


def test_sequences_that_are_too_long_are_counted_when_they_are_planned(
    bench: Bench, make_bench: MakeBench
) -> None:
    sequences = [("a", PROTEIN), ("b", PROTEIN * 20), ("c", PROTEIN * 30)]
    assert notes(bench, sequences) == [
        "2 sequences are longer than 1,022 residues, and will be truncated; --long window reads "
        "them whole."
    ]
    windows = make_bench(long="window")
    assert notes(windows, sequences) == [
        "2 sequences are longer than 1,022 residues, and will be read in windows."
    ]


def test_only_the_first_sequences_of_a_large_file_are_looked_at(bench: Bench) -> None:
    sequences = [(str(n), PROTEIN) for n in range(6000)]
    sequences[3] = ("bad", "MKJ")
    (note,) = notes(bench, sequences)
    assert "1 letter in 1 of its first 4," in note


# ---- from Python ----


def encode(model: Path, texts: list[str], **options: object) -> np.ndarray:
    return Encoder.load(str(model), **options).encode(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("MKV", "was given one string"),
        (b"MKV", "was given one string"),
        (["MKV", 7], "sequence 1 is a int, not a str"),
        (["MK<mask>V"], "contains <mask>"),
        ([dna(300)], "is DNA or RNA"),
    ],
)
def test_what_a_plan_refuses_an_encoder_refuses(
    tiny_model: Path, texts: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        encode(tiny_model, texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long": "windows"}, "long is one of truncate, window, fail, not 'windows'"),
        ({"max_residues": -5}, "max_residues is a number, 0 or more, not -5"),
        ({"max_residues": 1.5}, "max_residues is a number"),
        ({"dtype": "fp16"}, "dtype is one of float32, tf32, bfloat16, float16, auto, not 'fp16'"),
        ({"pooling": "sum"}, "pooling is one of mean"),
        ({"normalize": "yes"}, "normalize is True, False or None"),
        ({"chunk_size": 5}, "has no option 'chunk_size'"),
    ],
)
def test_values_that_the_command_line_refuses_are_refused(
    tiny_model: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        encode(tiny_model, ["MKV"], **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROTEIN * 20, "1 sequence was longer than .* and truncated"),
        ("MKJ", "1 letter is outside"),
        ("", "1 sequence has no letters"),
        ("XX", "only letters that stand for any other"),
    ],
)
def test_what_an_output_counts_an_encoder_warns_of(
    tiny_model: Path, text: str, message: str
) -> None:
    with pytest.warns(UserWarning, match=message):
        encode(tiny_model, ["MKV", text])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(tiny_model, ["MKV"])


def test_an_encoder_gives_a_row_for_each_token(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model), pooling="per-token")
    rows = encoder.encode_tokens(["MKV", "", "MKVLA"])
    assert [each.shape for each in rows] == [(3, 32), (0, 32), (5, 32)]
    mean = Encoder.load(str(tiny_model))
    np.testing.assert_allclose(rows[2].mean(0), mean.encode(["MKVLA"])[0], atol=1e-5)
    assert encoder.encode_tokens([]) == []
    with pytest.raises(UsageError, match="Call encode_tokens"):
        encoder.encode(["MKV"])
    with pytest.raises(UsageError, match="pooling='per-token'"):
        mean.encode_tokens(["MKV"])

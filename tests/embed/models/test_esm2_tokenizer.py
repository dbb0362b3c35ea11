"""Token ids by table equal those of transformers' tokenizer where that is right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from embed.models.esm2.tokenizer import BEGIN, END, VOCABULARY, X, token_ids, unknown


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    from transformers import EsmTokenizer

    path: Path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY))
    return EsmTokenizer(str(path))


def test_ids_equal_the_tokenizers_for_clean_sequences(tokenizer) -> None:  # type: ignore[no-untyped-def]
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
    rng = random.Random(1)
    for length in (1, 2, 50, 400):
        text = "".join(rng.choices(letters, k=length))
        ours = [BEGIN, *token_ids(text.encode()), END]
        assert ours == tokenizer(text)["input_ids"]


def test_runs_of_unknown_residues_are_not_merged_as_the_tokenizer_does(tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = "MKJJJL"
    assert len(tokenizer(text)["input_ids"]) == 4 + 2  # the trap: three residues became one token
    assert list(token_ids(text.encode())) == [
        VOCABULARY.index(letter) for letter in ("M", "K", "X", "X", "X", "L")
    ]


def test_every_byte_gives_one_token_and_lower_case_is_read_as_upper() -> None:
    everything = bytes(range(256))
    assert len(token_ids(everything)) == 256
    assert token_ids(b"mkvx-.") == token_ids(b"MKVX-.")
    assert set(token_ids(b"*J1@<\xff")) == {X}


def test_unknown_residues_are_counted_and_x_is_known() -> None:
    assert unknown(b"MKXUZOBx-.") == 0
    assert unknown(b"M*KJj1\xff") == 5

"""What is read of each sequence, its flags, and that blocks of them change nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from embed.engine.sequence_reader import SequenceReader
from embed.inputs.chunks import Chunk
from embed.inputs.fasta import Record
from embed.models import encode_many
from embed.models.esm2.tokenizer import EsmTokenizer, token_ids
from embed.outputs.claim_file import FLAGS
from fsqueue import ClaimImpossible

MOST = 7
LETTERS = some.text("MKVXx*-J", max_size=3 * MOST)


def reader_of(texts: list[str], long: str = "truncate", **options: Any) -> SequenceReader:
    records = [Record(str(n), text.encode()) for n, text in enumerate(texts)]
    return SequenceReader(records, EsmTokenizer(), {"long": long, "max_residues": MOST, **options})


@given(texts=some.lists(LETTERS, max_size=20), long=some.sampled_from(["truncate", "window"]))
def test_every_letter_that_fits_is_read_and_every_sequence_has_its_flags(
    texts: list[str], long: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_many, "LETTERS", 2 * MOST)
        reader = reader_of(texts, long)
        found = list(reader)
    kept = [text if long == "window" else text[:MOST] for text in texts]
    for row, text in enumerate(kept):
        own = [one for one in found if one.row == row]
        assert b"".join(one.ids for one in own) == token_ids(text.encode())  # type: ignore[misc]
        assert [one.window for one in own] == list(range(-(-len(text) // MOST)))
        assert not own or sum(one.share for one in own) == pytest.approx(1)
    columns, counts = reader.columns(), reader.counts()
    assert columns["lengths"].tolist() == [len(text) for text in texts]
    assert counts.residues == sum(map(len, kept))
    flags = {
        "truncated": [len(text) > MOST and long != "window" for text in texts],
        "windowed": [len(text) > MOST and long == "window" for text in texts],
        "unknown_residues": [bool(set(text) & set("J*")) for text in kept],
        "empty": [not text for text in texts],
        "uninformative": [bool(text) and not text.strip("Xx*-") for text in texts],
    }
    for name, expected in flags.items():
        assert [bool(each & FLAGS[name]) for each in columns["flags"].tolist()] == expected
        if name != "unknown_residues":
            assert getattr(counts, name) == sum(expected)
    assert counts.unknown_residues == sum(text.count("J") + text.count("*") for text in kept)


def test_a_chunk_has_the_length_of_its_text_and_where_it_begins() -> None:
    chunks = [Chunk("a#1", "Mé".encode(), "Mé", 0), Chunk("a#2", b"MKV", "MKV", 5)]
    reader = SequenceReader(chunks, EsmTokenizer(), {"long": "truncate", "max_residues": MOST})
    assert [one.text for one in reader] == ["Mé", "MKV"]
    assert reader.columns()["lengths"].tolist() == [2, 3]
    assert reader.columns()["begins"].tolist() == [0, 5]


def test_one_that_is_too_long_for_long_fail_is_named() -> None:
    with pytest.raises(ClaimImpossible, match="'1': is longer than --max-residues 7"):
        list(reader_of(["M" * MOST, "M" * (MOST + 1)], "fail"))


def test_of_a_long_sequence_no_more_is_tokenized_than_its_first_window() -> None:
    read: list[int] = []

    class Counting(EsmTokenizer):
        def read(self, letters: bytes) -> tuple[bytes, int]:
            read.append(len(letters))
            return super().read(letters)

    options = {"long": "truncate", "max_residues": MOST}
    (one,) = SequenceReader([Record("a", b"M" * 1000)], Counting(), options)
    assert one.rows == MOST and read == [MOST]

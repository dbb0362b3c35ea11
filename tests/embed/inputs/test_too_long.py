"""How many sequences are too long is said when they are planned, whatever a token is."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embed.inputs import too_long
from fsqueue import BadInput
from tests.embed.conftest import Bench, fasta
from tests.support import generic_models

MakeBench = Callable[..., Bench]
ROOM = 30
"""Of --max-residues 32, without <cls> and <eos>."""


def six_mers(count: int, seed: int = 7) -> str:
    """Return DNA that is `count` tokens of six bases."""
    return "".join(random.Random(seed).choices(["ACGTAC", "GTACGT", "TTTTTT", "GGGGGG"], k=count))


@pytest.fixture
def make(make_bench: MakeBench, tmp_path: Path) -> MakeBench:
    generic_models.write_model(tmp_path / "nucleotides", "nucleotides")
    return lambda **options: make_bench(
        model=str(tmp_path / "nucleotides"), max_residues=32, **options
    )


def notes(bench: Bench, sequences: list[tuple[str, str]]) -> list[str]:
    source = bench.handler.survey(bench.file(fasta(sequences)), bench.options)
    return [note.partition(": ")[2] for note in source.notes]


def test_sequences_of_more_tokens_than_fit_are_counted_exactly(make: MakeBench) -> None:
    """The one of ROOM tokens has many more letters than ROOM."""
    sequences = [("fits", six_mers(ROOM)), ("short", "ACGT"), ("long", six_mers(ROOM + 1))]
    assert notes(make(), sequences) == [
        "1 sequence is longer than 30 tokens, and will be truncated; --long window reads it whole."
    ]
    assert notes(make(long="window"), [*sequences, ("longer", six_mers(400))]) == [
        "2 sequences are longer than 30 tokens, and will be read in windows."
    ]
    assert notes(make(), sequences[:2]) == []


def test_what_is_said_when_planning_is_what_an_output_counts(make: MakeBench) -> None:
    sizes = [1, ROOM - 1, ROOM, ROOM + 1, ROOM + 2, 3 * ROOM, 50 * ROOM]
    sequences = [(str(n), six_mers(size, n)) for n, size in enumerate(sizes)]
    bench = make()
    (note,) = notes(bench, sequences)
    counts = bench.embed(bench.file(fasta(sequences))).metadata["counts"]
    assert note.startswith(f"{counts['truncated']} sequences are")


def test_a_prefix_takes_room(make_bench: MakeBench, tmp_path: Path) -> None:
    generic_models.write_model(tmp_path / "bert", "bert")
    sequences = [("a", "a," * 14), ("b", "a,")]
    plain = make_bench(model=str(tmp_path / "bert"), max_residues=32)
    with_prefix = make_bench(model=str(tmp_path / "bert"), max_residues=32, prefix="a worker: ")
    room = 30 - with_prefix.handler.tokenizer(with_prefix.options).prefix_tokens
    assert room < 30
    assert notes(plain, sequences) == []
    (note,) = notes(with_prefix, sequences)
    assert note.startswith(f"1 sequence is longer than {room} tokens")


def test_a_sequence_that_long_fail_refuses_is_refused_when_it_is_planned(make: MakeBench) -> None:
    bench = make(long="fail")
    assert notes(bench, [("fits", six_mers(ROOM))]) == []
    with pytest.raises(BadInput, match="longer than --max-residues 32, and --long fail"):
        notes(bench, [("long", six_mers(ROOM + 1))])


@pytest.mark.parametrize("compressed", [False, True])
def test_of_a_large_file_the_number_is_estimated_and_said_to_be(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    """A third of those that need the tokenizer are too long."""
    monkeypatch.setattr(too_long, "LETTERS_MAX", 1 << 15)
    count = 3000
    sequences = [(str(n), six_mers(ROOM + (n % 3 == 0), n)) for n in range(count)]
    sequences += [(f"short{n}", "ACGT") for n in range(count)]
    random.Random(7).shuffle(sequences)
    bench, data = make(), fasta(sequences).encode()
    path = bench.file(gzip.compress(data) if compressed else data)
    (note,) = bench.handler.survey(path, bench.options).notes
    match = re.search(r": about ([\d,]+) sequences are \(estimated from ([\d,]+)\) longer", note)
    assert match is not None, note
    estimated, sampled = (int(number.replace(",", "")) for number in match.groups())
    assert 0.8 * count / 3 < estimated < 1.2 * count / 3
    assert 100 < sampled < 400


def test_the_longest_sequence_of_a_large_file_is_always_looked_at(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_long, "LETTERS_MAX", 1 << 12)
    sequences = [(str(n), six_mers(ROOM, n)) for n in range(3000)]
    assert notes(make(), sequences) == []
    sequences[1234] = ("long", six_mers(ROOM + 1))
    (note,) = notes(make(), sequences)
    assert "sequences are (estimated from" in note or note.startswith("about 1 sequence is")


def test_of_a_chromosome_only_the_beginning_is_tokenized(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_long, "BLOCK_READ_MAX", 1 << 12)
    bench = make()
    read: list[int] = []
    tokenizer = bench.handler.tokenizer(bench.options)
    real = tokenizer._encode_many  # type: ignore[attr-defined]

    def counted(texts: list[str]) -> Iterator[list[int]]:
        read.extend(map(len, texts))
        return real(texts)  # type: ignore[no-any-return]

    monkeypatch.setattr(tokenizer, "_encode_many", counted)
    (note,) = notes(bench, [("chromosome", six_mers(20_000))])
    assert note.startswith("1 sequence is longer than 30 tokens")
    assert 0 < sum(read) <= 32 * ROOM + 3 * 200


def test_later_files_of_a_plan_are_looked_at_less_closely(
    make: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_long, "LETTERS_MIN", 1 << 11)
    bench = make()
    bench.handler._too_long = too_long.TooLongCounter(letters=1 << 17)
    path = bench.file(fasta([(str(n), six_mers(ROOM + 1, n)) for n in range(500)]))
    first, second = (bench.handler.survey(path, bench.options).notes[-1] for _ in range(2))
    assert ": 500 sequences are longer" in first
    assert ": about 500 sequences are (estimated from" in second

"""Chunks and frames: the golden values, and another implementation of the rules."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.inputs import contigs as module
from embed.inputs.contigs import chunk_starts, frames, prepare, split_file
from fsqueue import BadInput, UsageError

GOLDEN = {
    500: [(0, 500)],
    501: [(0, 500), (250, 501)],
    750: [(0, 500), (374, 750)],
    999: [(0, 500), (499, 999)],
    1000: [(0, 500), (500, 1000)],
    1001: [(0, 500), (333, 833), (666, 1001)],
    1100: [(0, 500), (366, 866), (732, 1100)],
    1250: [(0, 500), (416, 916), (832, 1250)],
    1500: [(0, 500), (500, 1000), (1000, 1500)],
    1501: [(0, 500), (375, 875), (750, 1250), (1125, 1501)],
}
STANDARD_CODE = {
    first + second + third: residue
    for (first, second, third), residue in zip(
        ((a, b, c) for a in "TCAG" for b in "TCAG" for c in "TCAG"),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
}


def plain_starts(length: int, chunk: int) -> list[int]:
    """Where chunks begin, by lists of overlaps, one for each chunk."""
    count = -(-length // chunk)
    surplus = count * chunk - length
    low = surplus // count
    higher = surplus - low * (count - 1)
    overlaps = ([low + 1] * higher + [low] * (count - 1 - higher))[: count - 1]
    return [n * chunk - sum(overlaps[:n]) for n in range(count)]


def plain_frames(contig: str, chunk: int) -> list[tuple[str, str, str]]:
    """Every open frame, codon by codon."""
    found = []
    for number, start in enumerate(plain_starts(len(contig), chunk), 1):
        read = contig.upper()[start : start + chunk]
        other = "".join({"A": "T", "C": "G", "G": "C", "T": "A"}.get(b, b) for b in reversed(read))
        for strand, bases in (("F", read), ("R", other)):
            for frame in range(3):
                codons = [bases[i : i + 3] for i in range(frame, len(bases) - 2, 3)]
                protein = "".join(STANDARD_CODE.get(codon, "") for codon in codons)
                if protein and "*" not in protein:
                    taken = bases[frame : frame + 3 * len(protein) + 1]
                    found.append((f"_chunk_{number}{strand}{frame + 1}", taken, protein))
    return found


def texts(contig: str, chunk: int) -> list[tuple[str, str, str]]:
    return [(name, n.decode(), p.decode()) for name, n, p in frames(contig.encode(), chunk)]


def dna(bases: int, seed: int = 1, letters: str = "ACGT") -> str:
    return "".join(random.Random(seed).choices(letters, k=bases))


# ---- chunks ----


@pytest.mark.parametrize("length", GOLDEN)
def test_golden_chunks(length: int) -> None:
    found = [(start, min(start + 500, length)) for start in chunk_starts(length, 500)]
    assert found == GOLDEN[length]


def test_the_last_of_four_chunks_of_1501_bases_is_376_long() -> None:
    assert 1501 - chunk_starts(1501, 500)[-1] == 376


@given(st.integers(1, 5000), st.integers(3, 700))
def test_chunks_cover_the_contig_and_are_those_of_the_plain_rule(length: int, chunk: int) -> None:
    found = chunk_starts(length, chunk)
    assert found == plain_starts(length, chunk)
    assert found[0] == 0
    assert found[-1] + chunk >= length
    assert all(0 < b - a <= chunk for a, b in zip(found, found[1:], strict=False))


def test_no_bases_make_no_chunk() -> None:
    assert chunk_starts(0, 500) == []
    assert list(frames(b"", 500)) == []


# ---- frames ----


def test_the_golden_lengths_of_nucleotides() -> None:
    """166 residues: 499 bases where the chunk goes on, 498 where it ends."""
    contig = "A" * 500
    lengths = {name: (len(n), len(p)) for name, n, p in texts(contig, 500)}
    assert lengths["_chunk_1F1"] == (499, 166)
    assert lengths["_chunk_1F2"] == (499, 166)
    assert lengths["_chunk_1F3"] == (498, 166)
    assert lengths["_chunk_1R1"] == (499, 166)


def test_a_stop_closes_its_frame_only() -> None:
    contig = "AAATAAAAAAAA"  # frame 1 reads AAA TAA
    assert [name[-2:] for name, _, _ in texts(contig, 500)] == ["F2", "F3", "R1", "R2", "R3"]


def test_an_ambiguous_codon_leaves_no_gap_and_shortens_the_nucleotides() -> None:
    (first, *_) = texts("AAANNNCCCGGG", 500)
    assert first == ("_chunk_1F1", "AAANNNCCCG", "KPG")


def test_a_frame_of_ambiguous_codons_alone_is_left_out() -> None:
    assert texts("NNNNNNNN", 500) == []


@pytest.mark.parametrize("bases", range(1, 12))
def test_short_contigs_are_as_by_the_plain_rule(bases: int) -> None:
    assert texts("ATGAAACCCGG"[:bases], 500) == plain_frames("ATGAAACCCGG"[:bases], 500)


@pytest.mark.slow
@given(st.text("ACGTNR", max_size=120), st.integers(3, 40))
def test_frames_are_those_of_the_plain_rule(contig: str, chunk: int) -> None:
    assert texts(contig, chunk) == (plain_frames(contig, chunk) if contig else [])


def test_real_lengths_are_as_by_the_plain_rule() -> None:
    contig = dna(4321, letters="ACGTACGTACGTACGTN")
    assert texts(contig, 300) == plain_frames(contig, 300)


# ---- files ----


def contigs(path: Path, *sequences: tuple[str, str], width: int = 60) -> str:
    lines = []
    for name, bases in sequences:
        lines += [f">{name}", *(bases[i : i + width] for i in range(0, len(bases), width))]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def pairs(path: str) -> list[tuple[str, str]]:
    lines = Path(path).read_text().splitlines()
    assert all(line.startswith(">") for line in lines[::2])
    return [(head[1:], body) for head, body in zip(lines[::2], lines[1::2], strict=True)]


def test_both_files_hold_the_same_ids_in_the_same_order(tmp_path: Path) -> None:
    first, second = dna(1501, 1), dna(700, 2).lower()
    path = contigs(tmp_path / "x.y.fasta", ("one described here", first), ("two", second))
    result = prepare(path, str(tmp_path / "out"), 300)
    bases, proteins = pairs(result.nucleotides), pairs(result.proteins)
    expected = [("one" + n, b, p) for n, b, p in plain_frames(first, 300)]
    expected += [("two" + n, b, p) for n, b, p in plain_frames(second, 300)]
    assert bases == [(name, b) for name, b, _ in expected]
    assert proteins == [(name, p) for name, _, p in expected]
    assert sorted(os.listdir(tmp_path / "out")) == ["x.y_nucleotide.fa", "x.y_protein.faa"]


def test_chunks_and_frames_are_counted(tmp_path: Path) -> None:
    closed = "TAATAATAA" * 20 + "TTATTATTA" * 20
    path = contigs(tmp_path / "x.fa", ("a", "A" * 360), ("b", closed), ("none", ""))
    result = prepare(path, str(tmp_path), 360)
    assert (result.contigs, result.chunks) == (3, 2)
    assert result.frames == len(plain_frames("A" * 360, 360)) + len(plain_frames(closed, 360))
    assert result.closed == (not plain_frames(closed, 360))


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1 << 20])
def test_the_pieces_that_a_file_is_read_in_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    path = contigs(tmp_path / "x.fa", ("a", dna(200)), ("b", dna(61, 2)), ("c>d", dna(9, 3)))
    monkeypatch.setattr(module, "PIECE_BYTES", piece)
    result = prepare(path, str(tmp_path / str(piece)), 100)
    sequences = [("a", dna(200)), ("b", dna(61, 2)), ("c>d", dna(9, 3))]
    expected = [name + n for name, bases in sequences for n, _, _ in plain_frames(bases, 100)]
    assert [name for name, _ in pairs(result.proteins)] == expected


def test_gzip_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    plain = prepare(contigs(tmp_path / "x.fa", ("a", dna(900))), str(tmp_path / "plain"), 300)
    text = (tmp_path / "x.fa").read_text().replace("\n", "\r\n")
    (tmp_path / "x.fna.gz").write_bytes(gzip.compress(text.encode()))
    packed = prepare(str(tmp_path / "x.fna.gz"), str(tmp_path / "packed"), 300)
    assert os.path.basename(packed.proteins) == "x_protein.faa"
    assert pairs(packed.proteins) == pairs(plain.proteins)


def test_an_empty_file_gives_two_empty_files(tmp_path: Path) -> None:
    (tmp_path / "x.fa").touch()
    result = prepare(str(tmp_path / "x.fa"), str(tmp_path), 500)
    assert (pairs(result.nucleotides), pairs(result.proteins)) == ([], [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b">p\nMKVLEFILPQWWEFQQ\n", "looks like protein"),
        (b"ACGT\n", "is not FASTA"),
        (b"@read\nACGT\n+\nIIII\n", "looks like FASTQ"),
    ],
)
def test_a_file_without_dna_is_refused_and_nothing_is_written(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "x.fa").write_bytes(data)
    with pytest.raises(BadInput, match=words):
        prepare(str(tmp_path / "x.fa"), str(tmp_path / "out"), 500)
    assert not os.path.exists(tmp_path / "out") or os.listdir(tmp_path / "out") == []


def test_a_damaged_file_leaves_the_earlier_outputs_as_they_were(tmp_path: Path) -> None:
    path = contigs(tmp_path / "x.fa", ("a", dna(900)))
    before = prepare(path, str(tmp_path / "out"), 300)
    kept = Path(before.proteins).read_bytes()
    packed = gzip.compress(dna(90_000).join([">a\n", "\n"]).encode())
    os.unlink(path)
    (tmp_path / "x.fa").write_bytes(packed[:-20])
    with pytest.raises(BadInput, match="truncated"):
        prepare(path, str(tmp_path / "out"), 300)
    assert Path(before.proteins).read_bytes() == kept
    assert len(os.listdir(tmp_path / "out")) == 2


def test_a_chunk_of_less_than_a_codon_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--chunk 2"):
        prepare(contigs(tmp_path / "x.fa", ("a", "ACGT")), str(tmp_path), 2)


def test_split_files_hold_the_same_ids_for_both_models(tmp_path: Path) -> None:
    result = prepare(contigs(tmp_path / "x.fa", ("a", dna(3000, 4))), str(tmp_path), 100)
    names = [name for name, _ in pairs(result.proteins)]
    assert len(names) > 6
    for path, folder in ((result.nucleotides, "x_nucleotide"), (result.proteins, "x_protein")):
        count = split_file(path, str(tmp_path / folder), 5)
        files = [tmp_path / folder / f"output_{n}.fa" for n in range(1, count + 1)]
        assert sorted(files) == sorted((tmp_path / folder).iterdir())
        assert [len(pairs(str(file))) for file in files[:-1]] == [5] * (count - 1)
        assert [name for file in files for name, _ in pairs(str(file))] == names


def test_a_folder_that_is_there_already_is_kept(tmp_path: Path) -> None:
    result = prepare(contigs(tmp_path / "x.fa", ("a", "A" * 60)), str(tmp_path), 30)
    split_file(result.proteins, str(tmp_path / "x_protein"), 3)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="rm -r"):
        split_file(result.proteins, str(tmp_path / "x_protein"), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_of_the_same_split_before_is_accepted(tmp_path: Path) -> None:
    """The command was killed after the first of two folders, and is repeated."""
    result = prepare(contigs(tmp_path / "x.fa", ("a", "A" * 60)), str(tmp_path), 30)
    count = split_file(result.proteins, str(tmp_path / "x_protein"), 3)
    before = {path: path.stat().st_ino for path in (tmp_path / "x_protein").iterdir()}
    assert split_file(result.proteins, str(tmp_path / "x_protein"), 3) == count == len(before)
    assert {path: path.stat().st_ino for path in (tmp_path / "x_protein").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

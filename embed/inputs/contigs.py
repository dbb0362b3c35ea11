"""Prepare contigs for two models: cut them into chunks, and translate each chunk in six frames.

These are VirNucPro's rules, to the letter, because classifiers were trained on what they give:

* A contig of L bases makes ceil(L / c) chunks. Their overlaps differ by one at most, but are not
  spread evenly, and the last chunk may be short (`starts`).
* A chunk is read in capitals; frames 1-3 of it, then of its reverse complement. A codon with
  anything but A, C, G, T translates to nothing: it leaves no gap and no X.
* A frame is kept if its protein is not empty and has no stop. Its nucleotides are three for each
  residue from the frame's start, and one more where the chunk has one.

The two files hold the same ids in the same order: `{contig}_chunk_{n}F1` and so on. What this
module does not know: models and pools.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs.fasta import Bytes, Record, explained, opened, records, refuse_other_kinds
from embed.outputs.whole_files import private_folder, whole
from fsqueue import BadInput, UsageError

PIECE: Final = 1 << 20
CHUNK_MIN: Final = 3
"""One codon."""
BASES: Final = b"ACGT"
NOTHING: Final = 0
"""What a codon with an ambiguous base translates to."""
RESIDUES: Final = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""The standard code, codons in the order of BASES."""
NOT_BASES: Final = b"EFILPQefilpq"
"""Residues that no nucleotide code has: a file with many of them holds proteins."""

_CAPITALS: Final = bytes(range(256)).upper()
_COMPLEMENT: Final = bytes.maketrans(b"ACGT", b"TGCA")
_CODES: Final = bytes(BASES.find(byte) % 256 for byte in range(256))


def _table(*, reverse: bool) -> bytes:
    """Return the residue of every codon code, forward or read from the other strand.

    Codes are in base 5, the fifth digit an ambiguous base.
    """
    table = bytearray([NOTHING]) * 256
    for number, residue in enumerate(RESIDUES):
        first, second, third = number // 16, number // 4 % 4, number % 4
        if reverse:
            first, second, third = 3 - third, 3 - second, 3 - first
        table[first * 25 + second * 5 + third] = residue
    return bytes(table)


FORWARD, REVERSE = _table(reverse=False), _table(reverse=True)


@dataclass(slots=True)
class Prepared:
    """What came out of a file of contigs."""

    nucleotides: str
    proteins: str
    contigs: int = 0
    chunks: int = 0
    frames: int = 0
    closed: int = 0
    """Chunks without an open frame: they are in no output."""


def starts(length: int, chunk: int) -> list[int]:
    """Return where the chunks of a contig begin.

    The surplus of ceil(L / c) whole chunks is taken up by overlaps: the first `low + rest` of them
    are of `low + 1` bases, the others of `low`.
    """
    count = -(-length // chunk)
    surplus = count * chunk - length
    low, rest = divmod(surplus, count) if count else (0, 0)
    return [n * chunk - n * low - min(n, low + rest) for n in range(count)]


def frames(bases: bytes, chunk: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (suffix of the id, nucleotides, protein) for every open frame of every chunk.

    `bases` is a whole contig, in capitals. A chunk without an open frame yields nothing.
    """
    codons = _codons(bases)
    forward, reverse = codons.translate(FORWARD), codons.translate(REVERSE)
    for number, start in enumerate(starts(len(bases), chunk), 1):
        stop = min(start + chunk, len(bases))
        read = bases[start:stop]
        for frame in range(3):
            residues = forward[start + frame : max(stop - 2, 0) : 3]
            if protein := _open(residues):
                yield f"_chunk_{number}F{frame + 1}", _slice(read, frame, protein), protein
        other = b""
        for frame in range(3):
            residues = reverse[start : max(stop - 2 - frame, start)][::-3]
            if protein := _open(residues):
                other = other or read.translate(_COMPLEMENT)[::-1]
                yield f"_chunk_{number}R{frame + 1}", _slice(other, frame, protein), protein


def _codons(bases: bytes) -> bytes:
    """Return the code of the codon that begins at each base but the last two."""
    digits: NDArray[np.uint8] = np.frombuffer(bases.translate(_CODES), np.uint8)
    digits = np.minimum(digits, 4)
    return (digits[:-2] * 25 + digits[1:-1] * 5 + digits[2:]).tobytes() if len(bases) > 2 else b""


def _open(residues: bytes) -> bytes:
    """Return the protein of a frame, empty if a stop closes it."""
    return b"" if b"*" in residues else residues.translate(None, bytes([NOTHING]))


def _slice(read: bytes, frame: int, protein: bytes) -> bytes:
    return read[frame : frame + 3 * len(protein) + 1]


def prepare(path: str, folder: str, chunk: int) -> Prepared:
    """Write X_nucleotide.fa and X_protein.faa into `folder`, X being the file's stem.

    Memory is that of the longest contig. Raises BadInput, UsageError.
    """
    if chunk < CHUNK_MIN:
        raise UsageError(f"--chunk {chunk}: a chunk must have at least {CHUNK_MIN} bases, a codon.")
    refuse_other_kinds(path)
    stem = f"{folder}/{_stem(path)}"
    result = Prepared(f"{stem}_nucleotide.fa", f"{stem}_protein.faa")
    os.makedirs(folder, exist_ok=True)
    with ExitStack() as stack:
        proteins = stack.enter_context(open(stack.enter_context(whole(result.proteins)), "wb"))
        bases = stack.enter_context(open(stack.enter_context(whole(result.nucleotides)), "wb"))
        stack.enter_context(explained(path))
        file, _size = stack.enter_context(opened(path))
        for contig in _contigs(file):
            _refuse_protein(path, contig)
            result.contigs += 1
            _write(contig, chunk, bases, proteins, result)
    return result


def split(path: str, folder: str, count: int) -> int:
    """Divide a file of `prepare` into folder/output_1.fa, output_2.fa ..., `count` sequences each.

    It appears whole. Returns how many files are in it. One that is there, and the same, stays.
    """
    if count < 1:
        raise UsageError(f"--split {count}: a file must hold at least 1 sequence.")
    number = 0
    with private_folder(folder) as private:
        with open(path, "rb") as file:
            while lines := list(islice(file, 2 * count)):
                number += 1
                with open(private / f"output_{number}.fa", "wb") as part:
                    part.writelines(lines)
        try:
            os.rename(private, folder)
        except OSError as error:
            if not _is_same(private, Path(folder)):
                raise UsageError(
                    f"{folder}: cannot be made ({error.strerror}); one of an earlier run is in its "
                    f"place. Remove it, then type the same again: rm -r {folder}"
                ) from error
    return number


def _is_same(ours: Path, other: Path) -> bool:
    """Say whether two directories hold the same files: then an earlier run made the other."""
    names = sorted(os.listdir(ours))
    if not other.is_dir() or sorted(os.listdir(other)) != names:
        return False
    return all(filecmp.cmp(ours / name, other / name, shallow=False) for name in names)


def _write(
    contig: Record, chunk: int, bases: BinaryIO, proteins: BinaryIO, result: Prepared
) -> None:
    """Write the open frames of one contig, and count them."""
    name = contig.id.encode()
    open_chunks = set()
    for suffix, nucleotides, protein in frames(contig.residues.translate(_CAPITALS), chunk):
        head = b">" + name + suffix.encode() + b"\n"
        bases.write(head + nucleotides + b"\n")
        proteins.write(head + protein + b"\n")
        open_chunks.add(suffix[:-2])
        result.frames += 1
    chunks = -(-len(contig.residues) // chunk)
    result.chunks += chunks
    result.closed += chunks - len(open_chunks)


def _contigs(file: Bytes) -> Iterator[Record]:
    """Yield the records of a FASTA file, reading as far as the next one begins."""
    parts: list[bytes] = []
    tail = b"\n"  # so that a record at the very start is found too
    while piece := file.read(PIECE):
        seam = tail + piece
        cut = seam.rfind(b"\n>") - len(tail) + 1  # where in the piece the last record begins
        if cut >= 0:
            yield from records(b"".join([*parts, piece[:cut]]))
            parts, piece = [], piece[cut:]
        parts.append(piece)
        tail = seam[-1:]
    yield from records(b"".join(parts))


def _refuse_protein(path: str, contig: Record) -> None:
    residues = contig.residues
    strange = len(residues) - len(residues.translate(None, NOT_BASES))
    if strange > len(residues) // 10:
        raise BadInput(
            f"{path}: {contig.id!r} has {strange:,} letters of {len(residues):,} that stand for no "
            f"base; it looks like protein. Proteins need no preparing: fsqueue plan embed"
        )


def _stem(path: str) -> str:
    name = os.path.basename(path).removesuffix(".gz")
    return os.path.splitext(name)[0]

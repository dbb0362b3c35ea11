"""Prepare contigs for two models: cut them into chunks, and translate each chunk in six frames.

These are exactly VirNucPro's rules, because classifiers were trained on its results:

* A contig of L bases makes ceil(L / c) chunks. Their overlaps differ by at most one, but are not
  spread evenly, and the last chunk may be short (`chunk_starts`).
* A chunk is read in upper case: its frames 1-3, then those of its reverse complement. A codon with
  anything but A, C, G, T translates to nothing: it leaves no gap and no X.
* A frame is kept if its protein is not empty and has no stop. Its nucleotides are three for each
  residue from the frame's start, and one more if the chunk has one.

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

from embed.inputs.fasta import (
    Bytes,
    Record,
    input_errors,
    open_fasta,
    parse_records,
    refuse_non_fasta,
)
from embed.outputs import recognise
from embed.outputs.atomic_write import atomic_write, private_folder
from fsqueue import BadInput, UsageError, refuse_overwriting

PIECE_BYTES: Final = 1 << 20
CHUNK_MIN: Final = 3
"""One codon."""
BASES: Final = b"ACGT"
NOTHING: Final = 0
"""What a codon with an ambiguous base translates to."""
RESIDUES: Final = b"KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""The standard code, codons in the order of BASES."""
NOT_BASES: Final = b"EFILPQefilpq"
"""Residues that are no IUPAC nucleotide code: a file with many of them holds proteins."""

_UPPER_CASE: Final = bytes(range(256)).upper()
_COMPLEMENT: Final = bytes.maketrans(b"ACGT", b"TGCA")
_CODES: Final = bytes(BASES.find(byte) % 256 for byte in range(256))


def _table(*, reverse: bool) -> bytes:
    """Return the residue of every codon code, read forward or from the other strand.

    A code has three digits in base 5; the fifth digit stands for an ambiguous base.
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
class PreparedContigs:
    """The files made of a file of contigs, and counts."""

    nucleotides: str
    proteins: str
    contigs: int = 0
    chunks: int = 0
    frames: int = 0
    closed: int = 0
    """Chunks without an open frame, which are in no output."""


def chunk_starts(length: int, chunk: int) -> list[int]:
    """Return where the chunks of a contig begin.

    The surplus of ceil(L / c) whole chunks becomes overlaps: the first `low + rest` of them have
    `low + 1` bases, the others `low`.
    """
    count = -(-length // chunk)
    surplus = count * chunk - length
    low, rest = divmod(surplus, count) if count else (0, 0)
    return [n * chunk - n * low - min(n, low + rest) for n in range(count)]


def frames(bases: bytes, chunk: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (suffix of the id, nucleotides, protein) for every open frame of every chunk.

    `bases` is a whole contig, in upper case. A chunk without an open frame yields nothing.
    """
    codons = _codons(bases)
    forward, reverse = codons.translate(FORWARD), codons.translate(REVERSE)
    for number, start in enumerate(chunk_starts(len(bases), chunk), 1):
        stop = min(start + chunk, len(bases))
        strand = bases[start:stop]
        for frame in range(3):
            residues = forward[start + frame : max(stop - 2, 0) : 3]
            if protein := _open_protein(residues):
                yield f"_chunk_{number}F{frame + 1}", _coding(strand, frame, protein), protein
        other_strand = b""
        for frame in range(3):
            residues = reverse[start : max(stop - 2 - frame, start)][::-3]
            if protein := _open_protein(residues):
                other_strand = other_strand or strand.translate(_COMPLEMENT)[::-1]
                yield f"_chunk_{number}R{frame + 1}", _coding(other_strand, frame, protein), protein


def _codons(bases: bytes) -> bytes:
    """Return the code of the codon at each base except the last two."""
    digits: NDArray[np.uint8] = np.frombuffer(bases.translate(_CODES), np.uint8)
    digits = np.minimum(digits, 4)
    return (digits[:-2] * 25 + digits[1:-1] * 5 + digits[2:]).tobytes() if len(bases) > 2 else b""


def _open_protein(residues: bytes) -> bytes:
    """Return the protein of a frame, or nothing if the frame has a stop."""
    return b"" if b"*" in residues else residues.translate(None, bytes([NOTHING]))


def _coding(strand: bytes, frame: int, protein: bytes) -> bytes:
    return strand[frame : frame + 3 * len(protein) + 1]


def prepare(path: str, folder: str, chunk: int) -> PreparedContigs:
    """Write X_nucleotide.fa and X_protein.faa into `folder`, where X is the file's stem.

    Needs the memory of the longest contig. Raises BadInput, UsageError.
    """
    if chunk < CHUNK_MIN:
        raise UsageError(f"--chunk {chunk}: a chunk must have at least {CHUNK_MIN} bases, a codon.")
    refuse_non_fasta(path)
    stem = f"{folder}/{_stem(path)}"
    result = PreparedContigs(f"{stem}_nucleotide.fa", f"{stem}_protein.faa")
    for target in (result.nucleotides, result.proteins):
        refuse_overwriting(target, inputs=[path], recognise=recognise.prepared)
    os.makedirs(folder, exist_ok=True)
    with ExitStack() as stack:
        private = stack.enter_context(atomic_write(result.proteins))
        proteins = stack.enter_context(open(private, "wb"))
        private = stack.enter_context(atomic_write(result.nucleotides))
        bases = stack.enter_context(open(private, "wb"))
        stack.enter_context(input_errors(path))
        file, _size = stack.enter_context(open_fasta(path))
        for contig in _contigs(file):
            _refuse_protein(path, contig)
            result.contigs += 1
            _write(contig, chunk, bases, proteins, result)
    return result


def split_file(path: str, folder: str, count: int) -> int:
    """Divide a file of `prepare` into folder/output_1.fa, output_2.fa ..., `count` sequences each.

    The folder appears whole. An existing folder with the same content is kept. Returns the number
    of files.
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
                    f"{folder}: cannot be created ({error.strerror}); an earlier run left another "
                    f"one there. Remove it, then repeat the command: rm -r {folder}"
                ) from error
    return number


def _is_same(folder: Path, other: Path) -> bool:
    """Return whether two directories hold the same files, as after the same run before."""
    names = sorted(os.listdir(folder))
    if not other.is_dir() or sorted(os.listdir(other)) != names:
        return False
    return all(filecmp.cmp(folder / name, other / name, shallow=False) for name in names)


def _write(
    contig: Record, chunk: int, bases: BinaryIO, proteins: BinaryIO, result: PreparedContigs
) -> None:
    """Write the open frames of one contig, and count them."""
    name = contig.id.encode()
    open_chunks = set()
    for suffix, nucleotides, protein in frames(contig.residues.translate(_UPPER_CASE), chunk):
        head = b">" + name + suffix.encode() + b"\n"
        bases.write(head + nucleotides + b"\n")
        proteins.write(head + protein + b"\n")
        open_chunks.add(suffix[:-2])
        result.frames += 1
    chunks = -(-len(contig.residues) // chunk)
    result.chunks += chunks
    result.closed += chunks - len(open_chunks)


def _contigs(file: Bytes) -> Iterator[Record]:
    """Yield the records of a FASTA file, each once the next one has begun."""
    parts: list[bytes] = []
    tail = b"\n"  # so that a record at the start of the file is found, too
    while piece := file.read(PIECE_BYTES):
        seam = tail + piece
        cut = seam.rfind(b"\n>") - len(tail) + 1  # where in the piece the last record begins
        if cut >= 0:
            yield from parse_records(b"".join([*parts, piece[:cut]]))
            parts, piece = [], piece[cut:]
        parts.append(piece)
        tail = seam[-1:]
    yield from parse_records(b"".join(parts))


def _refuse_protein(path: str, contig: Record) -> None:
    residues = contig.residues
    not_bases = len(residues) - len(residues.translate(None, NOT_BASES))
    if not_bases > len(residues) // 10:
        raise BadInput(
            f"{path}: {not_bases:,} of {len(residues):,} letters of {contig.id!r} are not bases; "
            f"it looks like protein. Proteins need no preparation: fsqueue plan embed"
        )


def _stem(path: str) -> str:
    name = os.path.basename(path).removesuffix(".gz")
    return os.path.splitext(name)[0]

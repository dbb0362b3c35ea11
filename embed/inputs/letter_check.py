"""Look at a file's first sequences: are their letters those that the model reads?

What cannot be meant is refused when it is planned: DNA for a protein model, proteins for a DNA
model, `<mask>` in a sequence. The rest is counted and said. Only the first sequences are looked at,
because planning must not take as long as computing; a claim counts all of its own.

What this module does not know: how a letter becomes a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

import numpy as np

from embed.inputs.fasta import Record, input_errors, open_fasta, parse_records
from embed.models.families import Tokenizer
from fsqueue import BadInput

SAMPLE_BYTES: Final = 1 << 18
ENOUGH: Final = 200
"""Letters; fewer may be a short peptide of A, C, G and T."""
NEARLY_ALL: Final = 0.98
SOME: Final = 0.02
BASES: Final = b"ACGTUN"
NO_BASES: Final = b"EFILPQ"
"""Residues that are neither bases nor IUPAC's codes of several bases."""
SPECIAL_TOKEN: Final = re.compile(rb"<[A-Za-z_]{2,12}>|\[(?:MASK|CLS|SEP|PAD|UNK)\]")


class Reads(StrEnum):
    """What a model's letters are."""

    PROTEINS = "proteins"
    DNA = "DNA"
    ANYTHING = "anything"


def reads(family: str, tokenizer: Tokenizer) -> Reads:
    """Return what the letters of a model are."""
    if family == "auto":
        if getattr(tokenizer, "reads_text", True):
            return Reads.ANYTHING
        return Reads.PROTEINS if getattr(tokenizer, "reads_proteins", False) else Reads.DNA
    return Reads.PROTEINS if family == "esm2" else Reads.DNA


def first_records(path: str) -> tuple[list[Record], bool]:
    """Return a file's first sequences, and whether these are all. Raises BadInput.

    The last one may be cut off.
    """
    with input_errors(path), open_fasta(path) as (file, _size):
        parts, room = [], SAMPLE_BYTES + 1
        while room and (part := file.read(room)):
            parts.append(part)
            room -= len(part)
    data = b"".join(parts)
    return list(parse_records(data[:SAMPLE_BYTES])), len(data) <= SAMPLE_BYTES


def check(
    name: str, records: Sequence[Record], tokenizer: Tokenizer, kind: Reads, *, are_all: bool
) -> Iterator[str]:
    """Yield what a user should know about the letters of these sequences.

    Raises BadInput if they cannot be meant for the model. `name` is what they are called.
    """
    if kind is Reads.ANYTHING:
        return
    _refuse_special_tokens(name, records)
    _refuse_other_alphabet(name, records, kind)
    of = "its" if are_all else f"its first {len(records):,}"
    unknown = [tokenizer.count_unknown(record.residues) for record in records]
    total = sum(each or 0 for each in unknown)
    if total:
        where = sum(bool(each) for each in unknown)
        letters, are = ("1 letter", "is") if total == 1 else (f"{total:,} letters", "are")
        yield (
            f"{name}: {letters} in {where:,} of {of} sequences {are} outside the model's "
            f"vocabulary, and read as unknown"
        )
    blank = tokenizer.uninformative + b"-.*?"
    meaningless = sum(
        bool(record.residues) and not record.residues.translate(None, blank) for record in records
    )
    if meaningless:
        letter = tokenizer.uninformative[:1].decode()
        have = "1 sequence has" if meaningless == 1 else f"{meaningless:,} sequences have"
        yield f"{name}: {have} nothing but {letter}; the vector will mean nothing"


def _refuse_special_tokens(name: str, records: Sequence[Record]) -> None:
    for record in records:
        match = SPECIAL_TOKEN.search(record.residues)
        if match:
            raise BadInput(
                f"{name}: sequence {record.id!r} contains {match.group().decode()}, which would be "
                f"read as {len(match.group())} letters, not as that token. Remove it, or write X "
                f"(N in DNA) for a letter that is not known."
            )


def _refuse_other_alphabet(name: str, records: Sequence[Record], kind: Reads) -> None:
    counts = np.zeros(256, np.int64)
    for record in records:
        counts += np.bincount(np.frombuffer(record.residues.upper(), np.uint8), minlength=256)
    total = int(counts[ord("A") : ord("Z") + 1].sum())
    if total < ENOUGH:
        return
    bases = int(counts[list(BASES)].sum()) / total
    if kind is Reads.PROTEINS and bases >= NEARLY_ALL:
        raise BadInput(
            f"{name}: is DNA or RNA ({100 * bases:.0f} % of the letters looked at are A, C, G, T, "
            f"U or N), and this model reads proteins. Translate it: fsqueue embed prepare; or give "
            f"a DNA model: --model zhihan1996/DNABERT-S"
        )
    residues = int(counts[list(NO_BASES)].sum()) / total
    if kind is Reads.DNA and residues >= SOME:
        raise BadInput(
            f"{name}: holds proteins ({100 * residues:.0f} % of the letters looked at are E, F, I, "
            f"L, P or Q, which stand for no base), and this model reads DNA. Give a protein model: "
            f"--model facebook/esm2_t33_650M_UR50D"
        )

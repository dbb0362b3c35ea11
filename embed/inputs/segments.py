"""Name a run of a FASTA file's blocks so that a worker reads exactly what was planned.

A segment is a path, a range of its (uncompressed) bytes, the lengths of the blocks in it, one
digest over the digests of those blocks, and the number of sequences in them. Reading goes block by
block, in bounded memory, and checks the digest at the end: a file that was only touched or copied
back is the same input, one whose bytes changed is not. Times and inode numbers do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.inputs.fasta import GZIP_ERRORS, Bytes, Record, open_fasta, parse_records
from embed.inputs.gzip_index import LazyRestarts, Restart
from fsqueue import ClaimFailed, ClaimImpossible

KEPT_MAX: Final = 1 << 28
"""How much of a claim's input is kept in memory between checking and parsing it, in bytes."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive blocks of one file, as a claim's payload holds them."""

    path: str
    start: int
    lengths: tuple[int, ...]
    digest: str
    sequences: int
    restart: Restart | None = field(default=None, compare=False, repr=False)
    """Of a gzip file: where to begin, to read less of it."""

    @classmethod
    def of(
        cls, path: str, blocks: NDArray[np.void], restarts: LazyRestarts | None = None
    ) -> Segment:
        """Return the segment of these consecutive rows of `Scan.blocks`."""
        start = int(blocks["start"][0]) if len(blocks) else 0
        digest = digest_of(blocks["digest"].tolist())
        sequences = int(blocks["sequences"].sum())
        restart = restarts.before(start) if restarts else None
        return cls(path, start, tuple(blocks["length"].tolist()), digest, sequences, restart)

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> Segment:
        """Return the segment that `encode` wrote."""
        lengths, text = tuple(data["lengths"]), data.get("restart")
        restart = Restart.decode(text) if text else None
        return cls(data["path"], data["start"], lengths, data["digest"], data["sequences"], restart)

    def encode(self) -> dict[str, Any]:
        """Return it as JSON."""
        counts = {"lengths": list(self.lengths), "sequences": self.sequences}
        where = {"restart": self.restart.encode()} if self.restart else {}
        return {**self.identity(), **counts, **where}

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this segment from every other."""
        return {"path": self.path, "start": self.start, "digest": self.digest}

    def records(self) -> Iterator[Record]:
        """Yield its sequences. Raises as `blocks` does."""
        for block in self.blocks():
            yield from parse_records(block)

    def verified(self, room: int) -> Segment | LoadedSegment:
        """Check its digest; return it loaded if it has at most `room` bytes. Raises as `blocks`."""
        if sum(self.lengths) <= room:
            return LoadedSegment(self.path, self.sequences, list(self.blocks()))
        self.verify()
        return self

    def verify(self) -> None:
        """Read it once, only to check its digest. Raises as `blocks` does."""
        for _block in self.blocks():
            pass

    def blocks(self) -> Iterator[bytes]:
        """Yield each block's bytes; after the last, raise ClaimImpossible if any has changed.

        Raises ClaimFailed if the file cannot be read here, because another machine may have it.
        """
        if self.restart is not None and sum(self.lengths) <= KEPT_MAX:
            blocks = self._blocks_from_restart(self.restart)
            if blocks is not None:
                yield from blocks
                return
        try:
            with open_fasta(self.path) as (file, _size):
                yield from self._checked_blocks(file)
        except GZIP_ERRORS as error:
            raise changed(self.path) from error
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _blocks_from_restart(self, restart: Restart) -> list[bytes] | None:
        """Return the blocks, read from a restart point; None if that does not give the right ones.

        A file with the same content may have been compressed anew, and then has other points.
        """
        try:
            file = restart.open(self.path)
            if file is None:
                return None
            with closing(file):
                return list(self._checked_blocks(file))
        except (OSError, EOFError, ValueError, ClaimImpossible):
            return None

    def _checked_blocks(self, file: Bytes | IO[bytes]) -> Iterator[bytes]:
        file.seek(self.start)  # in a gzip file this decompresses everything from where it began
        digests = []
        for length in self.lengths:
            block = _read(file, length)
            digests.append(hashlib.sha256(block).digest())
            yield block
        if digest_of(digests) != self.digest:
            raise changed(self.path)


@dataclass(frozen=True, slots=True)
class LoadedSegment:
    """A segment whose blocks were read, and checked, so that they need not be read again."""

    path: str
    sequences: int
    blocks: list[bytes] = field(repr=False)

    def records(self) -> Iterator[Record]:
        """Yield its sequences."""
        for block in self.blocks:
            yield from parse_records(block)


def digest_of(digests: Sequence[bytes]) -> str:
    """Return the digest of a run of blocks."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _read(file: Bytes | IO[bytes], length: int) -> bytes:
    parts = []
    while length and (part := file.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def unreadable(path: str, error: OSError) -> ClaimFailed:
    """Return the error for an input that cannot be read here; another machine may have it."""
    return ClaimFailed(
        f"{path}: cannot be read on this machine ({error.strerror or error}); it was moved, or its "
        f"file system is not mounted here. Put it back, then: fsqueue retry POOL"
    )


def changed(path: str) -> ClaimImpossible:
    """Return the error for an input that is not what was planned."""
    return ClaimImpossible(
        f"{path}: this input changed after it was planned; its bytes are not those that were "
        f"counted then. If the new content is right, plan it again: fsqueue plan embed POOL {path}"
    )

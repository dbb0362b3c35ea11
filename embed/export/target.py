"""What an export target is: it reports which keys it is missing, and adds their vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from embed.store.keys import Keys, Space
from embed.store.scan import Batch
from embed.store.store import Hit
from fsqueue import FsqueueError, NotSupportedError, UsageError

BLOCK_BYTES: Final = 8 << 20
"""The size of a batch of vectors, in float32."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the vectors come from, and the name of the table that they are copied to."""

    collection: str
    space: Space
    name: str

    @property
    def rows_max(self) -> int:
        """Return how many vectors are in one batch."""
        return max(1, BLOCK_BYTES // (4 * self.space.width))

    def metadata(self, hit: Hit) -> dict[str, Any]:
        """Return the metadata of a vector without its text; `begin` only if it has a text."""
        metadata = {
            "collection": self.collection,
            "input": hit.input,
            "record": hit.record,
            "length": hit.length,
            "model": self.space.model,
        }
        return metadata | ({"begin": hit.begin} if hit.begin >= 0 else {})


class Target(ABC):
    """One target. Creating it does not touch the target, so --dry-run leaves nothing behind."""

    rewrites = False
    """Whether `add` needs all vectors, and not only the missing ones."""

    @abstractmethod
    def __init__(self, target: str, origin: Origin) -> None:
        """Import the library. Raises NotSupportedError if it is not installed."""

    def choose_index(self, index: str) -> None:
        """Search by this kind of index, which is faster than comparing every vector, and not exact.

        Raises UsageError if the target has none, or not this one.
        """
        raise UsageError(
            f"--index {index}: only faiss and lancedb have indexes to choose. Leave it out."
        )

    def finish(self, added: int) -> None:
        """Do what follows after `added` vectors were added, perhaps none."""
        assert added >= 0

    @abstractmethod
    def missing(self, keys: Keys) -> Keys:
        """Return those of these keys, which are sorted, that the target does not have."""

    @abstractmethod
    def add(self, batches: Callable[[], Iterator[Batch]], count: int) -> None:
        """Add `count` vectors; each call of `batches` yields them all.

        A crash leaves the target readable, and another export completes it.
        """


def missing_library(extra: str, error: ImportError) -> NotSupportedError:
    """Return the error for a library that is not installed."""
    return NotSupportedError(
        f"--to {extra}: its library is not installed ({error}). Type: pip install "
        f"'fsqueue[{extra}]'"
    )


@contextmanager
def library_errors(library: str, target: str) -> Iterator[None]:
    """Turn any exception of a library into a one-line FsqueueError; databases raise all kinds."""
    try:
        yield
    except FsqueueError:
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200].rstrip(".")
        raise FsqueueError(
            f"{target}: {library} failed: {reason}. Check TARGET and --name; what an export has "
            f"added stays, and the next one continues from there."
        ) from error

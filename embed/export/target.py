"""What a road is: it says which keys its target lacks, and takes their vectors there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from embed.store.contents import Hit
from embed.store.keys import Keys, Space
from embed.store.walk import Batch
from fsqueue import FsqueueError, NotSupportedError

BLOCK_BYTES: Final = 8 << 20
"""What is passed on together, in float32."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the vectors come from, and what the table that they go to is called."""

    collection: str
    space: Space
    name: str

    @property
    def rows_max(self) -> int:
        """Return how many vectors are passed on together."""
        return max(1, BLOCK_BYTES // (4 * self.space.width))

    def facts(self, hit: Hit) -> dict[str, Any]:
        """Return what goes along with a vector, but its text; `begin` only where it has one."""
        facts = {
            "collection": self.collection,
            "input": hit.input,
            "record": hit.record,
            "length": hit.length,
            "model": self.space.model,
        }
        return facts | ({"begin": hit.begin} if hit.begin >= 0 else {})


class Target(ABC):
    """One target. Made without touching it, so that --dry-run leaves nothing behind."""

    rewrites = False
    """Whether `put` is to be given every vector, and not only those that are lacking."""

    @abstractmethod
    def __init__(self, target: str, origin: Origin) -> None:
        """Import the library. Raises NotSupportedError if it is not installed."""

    @abstractmethod
    def lacking(self, keys: Keys) -> Keys:
        """Return those of these keys, which are sorted, that the target does not have."""

    @abstractmethod
    def put(self, walks: Callable[[], Iterator[Batch]], count: int) -> None:
        """Add the vectors of so many keys, which each call of `walks` goes through.

        A crash leaves the target readable, and another export completes it.
        """


def not_installed(extra: str, error: ImportError) -> NotSupportedError:
    """Return what to raise where the library of an extra is missing."""
    return NotSupportedError(
        f"--to {extra}: its library is not installed ({error}). Type: pip install "
        f"'fsqueue[{extra}]'"
    )


@contextmanager
def told_by(library: str, target: str) -> Iterator[None]:
    """Make one line of whatever a library raises; databases raise anything."""
    try:
        yield
    except FsqueueError:
        raise
    except Exception as error:
        said = (str(error).strip() or repr(error)).splitlines()[0][:200].rstrip(".")
        raise FsqueueError(
            f"{target}: {library} says: {said}. Check TARGET and --name; what an export has added "
            f"stays, and the next one goes on from there."
        ) from error

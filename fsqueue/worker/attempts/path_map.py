"""Find the inputs of claims where this host has them: `--path-map OLD=NEW`.

A claim names its inputs, and what else it needs, by the paths that its planner saw. On a host that
mounts the same files elsewhere, or after they moved, a worker reads them where its path map says.
The claim itself, its id and its output are the same: what is pinned is the content.

In FSQUEUE_PATH_MAP, pairs stand on lines of their own. On one line, a blank before `/...=/` begins
the next pair, and any other blank is part of a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from fsqueue.errors import UsageError
from fsqueue.pool.claims import Claim

BETWEEN_PAIRS: Final = re.compile(r"\s+(?=/.*?=/)")


def split_pairs(text: str) -> list[str]:
    """Return the pairs OLD=NEW in the value of FSQUEUE_PATH_MAP."""
    text = text.strip()
    lines = text.splitlines() if "\n" in text else BETWEEN_PAIRS.split(text)
    return [line for line in lines if line]


@dataclass(frozen=True, slots=True)
class PathMap:
    """Pairs of an old and a new directory; the first that fits a path counts."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, words: Iterable[str]) -> PathMap:
        """Read OLD=NEW, each an absolute path. Raises UsageError."""
        pairs = []
        for word in words:
            old, equals, new = word.partition("=/")  # the names of directories may have a =
            old, new = old.rstrip("/"), f"/{new}".rstrip("/")
            if not (equals and old.startswith("/") and new):
                raise UsageError(
                    f"--path-map {word}: write OLD=NEW, two absolute paths of directories, such as "
                    f"/data=/mnt/lab/data; in FSQUEUE_PATH_MAP, each pair on a line of its own."
                )
            pairs.append((old, new))
        return cls(tuple(pairs))

    def claim(self, claim: Claim) -> Claim:
        """Return a claim whose options and payload name the files of this host."""
        if not self.pairs:
            return claim
        return replace(
            claim, options=self._apply(claim.options), payload=self._apply(claim.payload)
        )

    def _apply(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.path(value)
        if isinstance(value, list):
            return [self._apply(each) for each in value]
        if isinstance(value, dict):
            return {key: self._apply(each) for key, each in value.items()}
        return value

    def path(self, text: str) -> str:
        """Return a text with the old directories replaced where a path begins in it.

        That is at its beginning, and in an argument such as --db=/data/x.
        """
        for old, new in self.pairs:
            found = re.sub(rf"(^|[=:,\s'\"]){re.escape(old)}(?=/|$)", rf"\1{_literal(new)}", text)
            if found != text:
                return found
        return text


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")

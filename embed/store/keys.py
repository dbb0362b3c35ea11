"""Say what decides a vector: the sequence as the model reads it, and the space it lives in.

A key is a hash of both. The sequence enters as its token ids, after cutting or in its windows, so
that what the model cannot tell apart (lower case, letters it reads as unknown, what a truncation
drops) has one key. The batch that it was computed in is not part of it: the last digits of a vector
depend on that, and the first ones to be stored count for good.

What this module does not know: files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

KEY: Final = np.dtype("S16")
"""128 bits. numpy compares them as bytes, so that sorted arrays can be searched."""

WIDTH_MAX: Final = 1 << 24
Keys = NDArray[np.bytes_]

STORED: Final[dict[str, np.dtype[Any]]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
"""What vectors may be kept as, by the name of --store-dtype."""


@dataclass(frozen=True, slots=True)
class Space:
    """Whatever decides a vector but its sequence. Vectors of two spaces are never compared."""

    model: str
    """Only for eyes, as `folder`: `weights` tells models apart."""
    folder: str
    """Where it was when the space was made, if it is not of the hub."""
    weights: str
    family: str
    dtype: str
    pooling: str
    long: str
    max_residues: int
    stored: str
    width: int

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Space:
        """Return the space in which a plan of these options embeds."""
        facts = {name: options[name] for name in cls.__slots__ if name != "stored"}
        return cls(stored=options.get("store_dtype", "float32"), **facts)

    @classmethod
    def checked(cls, facts: Any) -> Space:
        """Return the space that a file speaks of. Raises ValueError, TypeError."""
        space = cls(**facts)
        for name, value in asdict(space).items():
            if type(value) is not (int if name in ("max_residues", "width") else str):
                raise ValueError(f"{name} is {value!r}")
        if space.stored not in STORED or not 0 < space.width < WIDTH_MAX:
            raise ValueError(f"vectors of {space.width} numbers as {space.stored}")
        return space

    @property
    def digest(self) -> bytes:
        """Return what enters every key."""
        facts = {
            name: value for name, value in asdict(self).items() if name not in ("model", "folder")
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()

    @property
    def name(self) -> str:
        """Return the name of its directory: the model's, and a hash."""
        model = re.sub(r"[^a-z0-9]+", "_", self.model.rsplit("/", 1)[-1].lower()).strip("_")
        return f"{model[:40] or 'model'}-{self.digest.hex()[:12]}"

    @property
    def number(self) -> np.dtype[Any]:
        """Return the type of the stored numbers."""
        return STORED[self.stored]


def key(space: bytes, windows: Iterable[Any]) -> bytes:
    """Return the key of a sequence in the space of this digest, from the ids of its windows."""
    found = hashlib.sha256(space)
    for ids in windows:
        numbers = np.frombuffer(ids, "u1") if isinstance(ids, bytes) else np.asarray(ids)
        found.update(len(numbers).to_bytes(8, "little"))
        found.update(numbers.astype("<u4").tobytes())
    return found.digest()[: KEY.itemsize]


def hexadecimal(keys: Keys) -> list[str]:
    """Return keys as people and databases hold them: 32 hex digits each."""
    width = KEY.itemsize
    raw = np.ascontiguousarray(keys, KEY).tobytes()
    return [raw[at : at + width].hex() for at in range(0, len(raw), width)]


def from_hexadecimal(ids: Iterable[str]) -> Keys:
    """Return the keys behind such ids. Raises ValueError if one is no id."""
    raw = [bytes.fromhex(id) for id in ids]
    if any(len(each) != KEY.itemsize for each in raw):
        raise ValueError("an id has 32 hex digits")
    return np.frombuffer(b"".join(raw), KEY)

"""Compute the key of a vector: a hash of the sequence as the model reads it, and of its space.

The sequence is hashed as its token ids, truncated or in windows, so that sequences which the model
cannot distinguish (by lower case, by letters that it reads as unknown, by what is truncated) have
one key. How long sequences may be is therefore no part of a space of format 2: what the rule makes
of a sequence is in its key. And a space of format 2 knows a model by the content of its files, so a
hub id and a local copy share it. The batch that a vector was computed in is not part of the key:
its last digits depend on that, and those that are stored first are used from then on.

What this module does not know: files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.models.conventions.convention import Convention

KEY: Final = np.dtype("S16")
"""128 bits. numpy compares them as bytes, so sorted arrays can be searched."""

WIDTH_MAX: Final = 1 << 24
Keys = NDArray[np.bytes_]

STORED: Final[dict[str, np.dtype[Any]]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
"""The dtypes of stored vectors, by the value of --store-dtype."""


NUMERICS: Final = {"esm2": 1, "dnabert": 1, "auto": 2}
"""The version of our own arithmetic, by family: raised when the same model and options give other
vectors than before, so that a store never mixes them. Plans without a convention have 1."""
ADDED: Final[Mapping[str, Any]] = {"convention": "", "overlap": 0, "numerics": 1, "content": ""}
"""What a space of format 1 does not say, and what it meant."""
NUMBERS: Final = ("max_residues", "width", "overlap", "numerics")
NOT_IN_KEYS: Final = ("model", "folder")
NOT_IN_KEYS_2: Final = ("weights", "long", "max_residues", "overlap")
"""What identifies a space of format 1, but none of format 2."""
QUERY_OPTIONS: Final = ("dtype", "pooling", "long", "max_residues", "overlap")


@dataclass(frozen=True, slots=True)
class Space:
    """What decides a vector besides its sequence. Vectors of two spaces are never compared."""

    model: str
    """For display only, like `folder`: `weights` identifies the model."""
    folder: str
    """Where the model was when the space was created, if it is not from the hub."""
    weights: str
    family: str
    dtype: str
    pooling: str
    long: str
    max_residues: int
    stored: str
    width: int
    convention: str = ""
    """The plan's convention as JSON, if it has one."""
    overlap: int = 0
    numerics: int = 1
    """The version of our own arithmetic for this family: NUMERICS."""
    content: str = ""
    """A hash of the model's files, wherever they came from; "" in format 1. With it, `weights` and
    how long sequences may be are those of the plan that created the space."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Space:
        """Return the space in which a plan of these options embeds."""
        facts = {name: options[name] for name in cls.__slots__ if name in options}
        if "convention" in options:
            facts["convention"] = json.dumps(options["convention"], sort_keys=True)
            facts["numerics"] = NUMERICS[options["family"]]
        return cls(stored=options.get("store_dtype", "float32"), **facts)

    def options(self) -> dict[str, Any]:
        """Return the options of a plan that embeds as the vectors of this space were."""
        found = {name: getattr(self, name) for name in QUERY_OPTIONS}
        return found | ({"convention": json.loads(self.convention)} if self.convention else {})

    @property
    def pooled(self) -> Convention:
        """Return what became of the model's states."""
        return Convention.of(self.options() | {"family": self.family})

    def encode(self) -> dict[str, Any]:
        """Return what its space.json holds: that of format 1, and what differs from it."""
        given = asdict(self).items()
        return {name: value for name, value in given if value != ADDED.get(name)}

    @classmethod
    def decode(cls, facts: Any) -> Space:
        """Return the space that a space.json describes. Raises ValueError, TypeError."""
        space = cls(**facts)
        for name, value in asdict(space).items():
            if type(value) is not (int if name in NUMBERS else str):
                raise ValueError(f"{name} is {value!r}")
        if space.stored not in STORED or not 0 < space.width < WIDTH_MAX:
            raise ValueError(f"vectors of {space.width} numbers as {space.stored}")
        return space

    @property
    def digest(self) -> bytes:
        """Return the space's part of every key."""
        left_out = {*NOT_IN_KEYS, *(NOT_IN_KEYS_2 if self.content else ())}
        facts = {name: value for name, value in self.encode().items() if name not in left_out}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()

    @property
    def name(self) -> str:
        """Return the name of its directory: the model's, and a hash.

        In format 2 the model is called by its kind, because each user may call it by another name.
        """
        if self.content:
            kind = "encoder" if self.family == "auto" else self.family
            return f"{kind}_{self.width}-{self.digest.hex()[:12]}"
        model = re.sub(r"[^a-z0-9]+", "_", self.model.rsplit("/", 1)[-1].lower()).strip("_")
        return f"{model[:40] or 'model'}-{self.digest.hex()[:12]}"

    @property
    def format_1(self) -> Space:
        """Return the space of format 1 that the same plan would have used."""
        return replace(self, content="")

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Return the dtype of the stored numbers."""
        return STORED[self.stored]


def key(space: bytes, windows: Iterable[Any]) -> bytes:
    """Return the key of a sequence in the space with this digest, from the ids of its windows."""
    hashed = hashlib.sha256(space)
    for ids in windows:
        numbers = np.frombuffer(ids, "u1") if isinstance(ids, bytes) else np.asarray(ids)
        hashed.update(len(numbers).to_bytes(8, "little"))
        hashed.update(numbers.astype("<u4").tobytes())
    return hashed.digest()[: KEY.itemsize]


def difference(keys: Keys, known: Keys) -> Keys:
    """Return those of `keys` that are not among `known`; both are sorted."""
    if not len(known):
        return keys
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return keys[known[at] != keys]


def hexadecimal(keys: Keys) -> list[str]:
    """Return keys as the ids that people and databases use: 32 hex digits each."""
    width = KEY.itemsize
    raw = np.ascontiguousarray(keys, KEY).tobytes()
    return [raw[at : at + width].hex() for at in range(0, len(raw), width)]


def from_hexadecimal(ids: Iterable[str]) -> Keys:
    """Return the keys of ids. Raises ValueError if one is not an id."""
    raw = [bytes.fromhex(id) for id in ids]
    if any(len(each) != KEY.itemsize for each in raw):
        raise ValueError("an id has 32 hex digits")
    return np.frombuffer(b"".join(raw), KEY)

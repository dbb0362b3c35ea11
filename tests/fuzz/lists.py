"""@FILE lists of inputs: absolute paths, each once, of lines that are no comments."""

from __future__ import annotations

import os

from fsqueue.scheduling.inputs import find_inputs
from tests.fuzz.sandbox import directory, put, typed_errors_only

SEEDS = (
    b"a.fa\n# none\n\nb.fa\r\n/abs/c.fa",
    b"caf\xc3\xa9.fa\n\xff\xfe\n../up.fa\n",
    b"a\nb\na\n",
    b"with space \n\ttab\n",
    b"\xef\xbb\xbfa.fa\n",
)


def run(data: bytes) -> None:
    """Read `data` as a list."""
    path = directory() / "list"
    put(str(path), data)
    with typed_errors_only():
        found = find_inputs([f"@{path}"]).paths
        assert all(map(os.path.isabs, found))
        assert len(set(found)) == len(found)
        assert not any("\n" in each or "\0" in each for each in found)
        text = data.removeprefix(b"\xef\xbb\xbf")
        lines = [os.fsdecode(line) for line in text.replace(b"\r", b"\n").split(b"\n")]
        meant = [line for line in lines if line.strip() and not line.startswith("#")]
        assert {os.path.abspath(directory() / line) for line in meant} >= set(found)

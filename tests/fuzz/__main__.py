"""Run one fuzzer under atheris: `python -m tests.fuzz TARGET [LIBFUZZER-OPTION...]`.

`scripts/fuzz` calls this, with its own directories and a time limit.
"""

from __future__ import annotations

import importlib
import logging
import sys

import atheris

with atheris.instrument_imports(include=["fsqueue", "embed", "tests.fuzz"]):
    # atheris must be active when fsqueue is imported first, or coverage is not measured.
    from tests.fuzz.sandbox import TOKENS, directory


def main() -> None:
    """Import the target instrumented, then hand over to libFuzzer, which does not come back."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["fsqueue", "embed", "tests.fuzz"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    logging.disable(logging.CRITICAL)
    sys.argv += begin_with(target.SEEDS)
    atheris.Setup(sys.argv, target.run)
    atheris.Fuzz()


def begin_with(seeds: tuple[bytes, ...]) -> list[str]:
    """Write seeds and dictionary for libFuzzer; return the arguments that name them."""
    folder = directory() / "seeds"
    folder.mkdir()
    for number, seed in enumerate(seeds):
        (folder / str(number)).write_bytes(seed)
    words = directory() / "dictionary"
    quoted = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS if len(token) < 64)
    words.write_text("".join(f'"{text}"\n' for text in quoted))
    return [str(folder), f"-dict={words}"]


if __name__ == "__main__":
    main()

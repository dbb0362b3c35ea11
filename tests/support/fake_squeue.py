"""A fake squeue for machines without Slurm: a program that prints what a test wants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SCRIPT = """#!/bin/sh
echo "$@" >> "{home}/asked"
[ -e "{home}/rows" ] && exec cat "{home}/rows"
echo "slurm_load_jobs error: Unable to contact slurm controller" >&2
exit 1
"""


class Squeue:
    """A squeue at the head of PATH. It fails until `prints` is called."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self._home = home
        home.mkdir()
        program = home / "squeue"
        program.write_text(SCRIPT.format(home=home))
        program.chmod(0o755)
        patch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")

    def prints(self, *rows: str) -> None:
        """Let it print these lines from now on."""
        text = "".join(f"{row}\n" for row in rows)
        (self._home / "next").write_text(text)
        (self._home / "next").replace(self._home / "rows")

    def fails(self) -> None:
        """Let it fail from now on, as if the controller were down."""
        (self._home / "rows").unlink(missing_ok=True)

    @property
    def asked(self) -> list[str]:
        """The arguments of every call so far."""
        path = self._home / "asked"
        return path.read_text().splitlines() if path.exists() else []

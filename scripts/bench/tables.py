"""What the benches share: one table with ratios, the same as JSON, and temporary places."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every bench has."""
    made = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    made.add_argument("--dir", help="a place on the file system to measure; default: the system's")
    return made


def place(given: argparse.Namespace) -> Path:
    """Return an empty directory of our own. It is left to its caller to remove it, at the end:

    an ext4 without a journal creates files slowly for some time after a mass deletion.
    """
    return Path(tempfile.mkdtemp(prefix="bench-", dir=given.dir))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table that is Markdown, too."""
    print(f"| {' | '.join(head)} |")
    print("|" + "---|" * len(head))
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def write_json(given: argparse.Namespace, bench: str, figures: Any) -> None:
    """Write the figures, with what one must know of the machine to compare them."""
    if given.json is None:
        return
    facts = {
        "bench": bench,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "command": sys.argv[1:],
        "figures": figures,
    }
    given.json.write_text(json.dumps(facts, indent=1) + "\n")

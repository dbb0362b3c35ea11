"""Register a handler as its user would: a module and a dist-info on PYTHONPATH."""

from __future__ import annotations

import os
from pathlib import Path


def install_handler(site: Path, name: str, source: str) -> dict[str, str]:
    """Install `source`, which defines the class Made, as handler `name`; return the environment."""
    site.mkdir(parents=True, exist_ok=True)
    module = f"{name}_handler"
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fsqueue.handlers]\n{name} = {module}:Made\n")
    return handler_environment(site)


def handler_environment(site: Path) -> dict[str, str]:
    """Return the environment in which what is installed in `site` is found."""
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{site}{os.pathsep}{before}" if before else str(site)}

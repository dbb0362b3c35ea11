"""Register a handler as its user would: a module and a dist-info on PYTHONPATH."""

from __future__ import annotations

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
    return {"PYTHONPATH": str(site)}

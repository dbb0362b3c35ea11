"""What outputs are made on: this host, its GPU, and the versions of what is loaded.

What this module does not know: where that is recorded (`records.checksums`), or for which claim.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fsqueue.version import __version__
from fsqueue.worker.settings import WorkerSettings


class Surroundings:
    """The facts of one worker's process, in the form in which they are recorded."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: Mapping[str, Any] = {}
        self._versions: Mapping[str, str] = {}
        self._modules = 0

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """Return what this worker runs on, and the versions of what is loaded by now.

        The same objects, as long as nothing changed: it is called once per output.
        """
        self._worker = self._worker or _worker(self._settings)
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            found = loaded_versions()
            if found != self._versions:
                self._versions = found
        return {"worker": self._worker, "versions": self._versions}


def _worker(settings: WorkerSettings) -> dict[str, Any]:
    system = os.uname()
    gpu = {key: settings.gpu[key] for key in ("name", "uuid", "driver") if settings.gpu.get(key)}
    return {
        "host": system.nodename,
        "system": f"{system.sysname} {system.release} {system.machine}",
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "fsqueue": __version__,
        **({"gpu": gpu} if gpu else {}),
        **({"slurm": settings.slurm} if settings.slurm else {}),
    }


def cpu_model() -> str:
    """Return the name of this host's CPU, "" if it is not known."""
    try:
        with open("/proc/cpuinfo", errors="replace") as file:
            found = re.search(r"^(?:model name|Model)\s*: *(.+?) *$", file.read(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def loaded_versions() -> dict[str, str]:
    """Return the versions of the packages that this process has imported, by name.

    Those that name none, and have no distribution of their name either, are left out.
    """
    found = {}
    for name, module in sorted(sys.modules.items()):
        if "." in name or name.startswith("_") or name in sys.stdlib_module_names:
            continue
        given = getattr(module, "__dict__", {}).get("__version__")  # no lazy import for its sake
        text = given if isinstance(given, str) else _version_of(name)
        if text:
            found[name] = str(text)
    found.pop("fsqueue", None)  # said once
    return found


def _version_of(name: str) -> str:
    try:
        return version(name)
    except (PackageNotFoundError, ValueError, OSError):
        return ""

"""Load the fake driver of nvml.c into the real pynvml, and control its GPUs."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from ctypes import CDLL
from pathlib import Path

import pynvml
import pytest

GIB = 1 << 30
NOT_SUPPORTED = 3
NO_PERMISSION = 4
GPU_IS_LOST = 15
VERSION_MISMATCH = 18


@functools.cache
def library(*flags: str) -> Path:
    """Compile the library, once for each set of flags; its directory suits LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the fake driver needs a C compiler")
    directory = tempfile.mkdtemp(prefix="nvml-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    target = Path(directory, "libnvidia-ml.so.1")
    source = Path(__file__).with_name("nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", target, source], check=True)
    return target


class Driver:
    """What the fake driver answers, and how often it was called."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "nvml"
        self.calls_file = directory / "nvml.calls"
        self.file.touch()

    def set(self, device: int | str, **fields: object) -> None:
        """Change fields of a card (0), of an instance (0/1) or of the library (*)."""
        with self.file.open("a") as file:
            file.writelines(f"{device} {field} {value}\n" for field, value in fields.items())

    def add(self, device: int | str, name: str, uuid: str, *, gib: int = 24) -> None:
        """Plug in a GPU that works normally."""
        self.set(device, name=name, uuid=uuid, total=gib * GIB, used=gib * GIB // 2)
        self.set(device, util=87, temperature=64, power=250_000)

    def calls(self, function: str) -> int:
        """Count the calls of a function so far, over all devices and processes."""
        if not self.calls_file.exists():
            return 0
        return sum(line.split()[0] == function for line in self.calls_file.read_text().splitlines())

    @property
    def environ(self) -> dict[str, str]:
        """What a child process needs, to find this driver by the loader's own search."""
        return {
            "NVML_STANDIN": str(self.file),
            "NVML_STANDIN_CALLS": str(self.calls_file),
            "LD_LIBRARY_PATH": str(library().parent),
        }


def install(patch: pytest.MonkeyPatch, directory: Path, *flags: str) -> Driver:
    """Load the fake driver into this process's pynvml until the test ends."""
    driver = Driver(directory)
    patch.setattr(pynvml, "nvmlLib", CDLL(str(library(*flags))))
    patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    patch.setenv("NVML_STANDIN", str(driver.file))
    patch.setenv("NVML_STANDIN_CALLS", str(driver.calls_file))
    return driver


def unplug(patch: pytest.MonkeyPatch, directory: Path, smi: str | None = None) -> None:
    """Leave this process without a driver, and with no nvidia-smi but the given shell script."""
    install(patch, directory)
    patch.delenv("NVML_STANDIN")
    programs = directory / "bin"
    programs.mkdir()
    patch.setenv("PATH", str(programs))
    if smi is not None:
        program = programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{smi}\n")
        program.chmod(0o755)

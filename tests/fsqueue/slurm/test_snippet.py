"""The README's ten-line handler is installed and run, word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.handlers import handler_environment
from tests.support.processes import FSQUEUE, environment

HEADING = "Your own handler"
TEXTS = {"one.txt": "a word or\ntwo more\n", "two.txt": "", "three.txt": "three\tnew words"}


@pytest.fixture(scope="module")
def section() -> str:
    """The README's text under that heading."""
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    parts = re.split(r"^## +(.*)$", readme, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert HEADING in sections, f"README.md has no section {HEADING!r}"
    return sections[HEADING]


def block(section: str, language: str) -> str:
    """Return the only fenced block in that language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(text)


def test_a_handler_takes_at_most_ten_lines(section: str) -> None:
    assert len(block(section, "python").splitlines()) <= 10


@pytest.mark.slow
def test_the_handler_of_the_readme_does_what_it_says(section: str, tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(block(section, "python"))
    (tmp_path / "pyproject.toml").write_text(block(section, "toml"))
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text)
    lines = block(section, "console").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert commands[0] == "pip install ."

    install_offline(tmp_path)
    for command in commands[1:]:
        if command.startswith("fsqueue "):
            run = run_in(tmp_path, [*FSQUEUE, *shlex.split(command)[1:]])
        else:
            run = run_in(tmp_path, ["sh", "-c", command])
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"

    assert sorted(run.stdout.split()) == ["0", "3", "5"]


def install_offline(directory: Path) -> None:
    """Do what `pip install .` does, but into a directory beside it, and without the network."""
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", "site"]
    run = run_in(directory, [sys.executable, "-m", "pip", "install", *options, "."])
    assert run.returncode == 0, run.stderr


def run_in(directory: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with the package that was installed there."""
    env = environment(handler_environment(directory / "site"))
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        argv,
        cwd=directory,
        env=env | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )

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
    readme = (Path(__file__).parents[1] / "README.md").read_text()
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
    assert type_in(tmp_path, block(section, "console")) == ["0", "3", "5"]


@pytest.mark.slow
def test_the_class_and_the_package_of_the_handlers_page_do_what_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/handlers.md").read_text()
    a_class = page.partition("## A Handler class")[2].partition("\n## ")[0]
    (tmp_path / "words.py").write_text(block(a_class, "python"))
    make_texts(tmp_path)
    run = run_in(tmp_path, [*FSQUEUE, *shlex.split(block(a_class, "console"))[2:]])
    assert run.returncode == 0, run.stderr

    package = page.partition("## A package")[2]
    (tmp_path / "pyproject.toml").write_text(block(package, "toml"))
    install, plan = block(package, "console").splitlines()
    assert install == "$ pip install ."
    install_offline(tmp_path)
    words = shlex.split(plan.removeprefix("$ fsqueue "))
    run = run_in(tmp_path, [*FSQUEUE, *words])
    assert run.returncode == 0 and "3 claims planned" in run.stdout, run.stderr


def type_in(directory: Path, console: str) -> list[str]:
    """Run the lines of a console block; return the words that the last one printed, sorted."""
    make_texts(directory)
    lines = console.splitlines()
    for command in (line.removeprefix("$ ") for line in lines if line.startswith("$ ")):
        if command.startswith("fsqueue "):
            run = run_in(directory, [*FSQUEUE, *shlex.split(command)[1:]])
        else:
            run = run_in(directory, ["sh", "-c", command])
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
    return sorted(run.stdout.split())


def make_texts(directory: Path) -> None:
    (directory / "texts").mkdir()
    for name, text in TEXTS.items():
        (directory / "texts" / name).write_text(text)


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

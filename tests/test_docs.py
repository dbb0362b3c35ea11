"""The documents tell the truth: every command is in them, every number in them can be found."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from embed.cli import embed
from fsqueue.cli import COMMANDS, cli
from fsqueue.handler import registered

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *(f"docs/{name}.md" for name in "EMBED SHARING FILESYSTEMS WATCH".split())]
GUIDE = "\n".join((ROOT / page).read_text() for page in PAGES)
"""What people read to use it."""
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"fsqueue {name}\b", README), f"fsqueue {name} is nowhere in README.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_option_without_help_is_refused(name: str) -> None:
    found = command(name)
    assert found.help and found.help.strip().endswith((".", "):", ")"))
    for parameter in found.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"fsqueue {name} {parameter.opts}"


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_handler_has_help_with_its_options(name: str) -> None:
    done = CliRunner().invoke(cli, ["plan", name, "--help"])
    assert done.exit_code == 0
    assert "--gpus" in done.output and "--dry-run" in done.output


def test_every_command_in_a_console_block_exists() -> None:
    for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL):
        for name in re.findall(r"\$ (?:.*[ ;])?fsqueue ([a-z]+)", block):
            assert name in COMMANDS or name == "embed", f"the pages show fsqueue {name}"


def test_every_option_that_the_pages_name_exists() -> None:
    commands = [command(name) for name in COMMANDS if name != "plan"]
    plan = command("plan")
    assert isinstance(plan, click.Group)
    commands += [plan.get_command(click.Context(plan), name) for name in sorted(registered())]
    commands += list(embed.commands.values())
    known = {
        option
        for each in commands
        if each is not None
        for parameter in each.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE)) - {"--help"}
    outside = {
        "--nightly",
        "--no-deps",
        "--requeue",
        "--array",
        "--open-mode",
        "--signal",
        "--gres",
        "--time",
        "--mem",
    }
    assert named - known <= outside, named - known


def test_every_link_leads_to_a_file() -> None:
    for page in (*PAGES, "ARCHITECTURE.md", "docs/TROUBLE.md", "docs/STORE.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), target


def test_every_line_of_the_page_of_troubles_is_held_by_a_test_that_exists() -> None:
    """Each row of a table is followed by one that names its tests."""
    page = (ROOT / "docs" / "TROUBLE.md").read_text()
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.M)}
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named and named <= tests, sorted(named - tests)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| you see |")]
    assert all("`test_" in row for row in rows[1::2]), "a row without a test"
    assert not any("`test_" in row for row in rows[::2]), "a test without a row"


def test_the_code_map_names_every_module() -> None:
    modules = {path.stem for path in (ROOT / "fsqueue").glob("[!_]*.py")}
    modules |= {
        path.name for path in (ROOT / "fsqueue").iterdir() if (path / "__init__.py").exists()
    }
    named = set(re.findall(r"`([a-z_]+)/?`", ARCHITECTURE))
    assert modules <= named, sorted(modules - named)


def test_the_first_pages_fit_their_promise() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150
    assert len(README.splitlines()) <= 280


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 5, 75, 130])
def test_the_exit_statuses_are_documented_where_people_look(status: int) -> None:
    table = README[README.index("**Exit status**") :]
    assert re.search(rf"\b{status}\b", table[:400])
    assert re.search(rf"\b{status}\b", CliRunner().invoke(cli, ["--help"]).output)


def test_every_test_that_security_md_names_is_there() -> None:
    """A promise about safety without a test is an advertisement."""
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    files = {"tests/fsqueue/test_trust.py", *re.findall(r"`(tests/[\w/]+\.py)`", text)}
    there = {
        name
        for file in files
        for name in re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
    }
    assert len(named) >= 25
    assert named <= there, sorted(named - there)
    promises = [row for row in text.partition("## What holds")[2].splitlines() if row[:2] == "| "]
    assert all("`test_" in row for row in promises if not row.startswith("| |"))

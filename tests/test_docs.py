"""The documents: every command has help and is in the README, and what the pages show exists."""

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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = "\n".join(
    page.read_text() for page in PAGES if page.stem not in ("benchmarks", "decisions")
)
"""What people read to use it."""


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"fsqueue {name}\b", README), f"fsqueue {name} is nowhere in README.md"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_option_has_help(name: str) -> None:
    found = command(name)
    assert found.help and found.help.strip()
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
    store = embed.commands["store"]
    commands += list(store.commands.values()) if isinstance(store, click.Group) else []
    known = {
        option
        for each in commands
        if each is not None
        for parameter in each.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GUIDE)) - {"--help"}
    of_others = "--nightly --no-deps --requeue --array --open-mode --signal --gres --time --mem "
    of_others += "--least --signal --nv --bind --rm --user --init --pid "
    of_others += "--crash-limit --env --time-request --ipc"
    assert named - known <= set(of_others.split()), named - known


def test_every_link_leads_to_a_file() -> None:
    for page in (*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_that_the_pages_name_is_there() -> None:
    """A promise may name its test; then the test exists."""
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.M)}
    for page in (*PAGES, ROOT / "SECURITY.md"):
        if page.stem not in ("benchmarks", "decisions"):
            named = set(re.findall(r"`(test_[a-z]\w+)`", page.read_text()))
            assert named <= tests, f"{page.name}: {sorted(named - tests)}"


def test_every_package_is_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for package in ("fsqueue", "embed"):
        for path in (ROOT / package).iterdir():
            if (path / "__init__.py").exists():
                assert f"`{path.name}/`" in text, path

"""The project itself: entry points, pinned dependencies, the wheel, and the model of the demo."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fsqueue

PACKAGES = ("fsqueue", "embed")


@pytest.fixture(scope="session")
def setup_cfg(project: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(project / "setup.cfg")
    return parser


@pytest.fixture(scope="session")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the sources because the build writes into them."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, source)
    for name in (*PACKAGES, "tests", "scripts"):
        shutil.copytree(project / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source))
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by pip into a directory outside the checkout."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def declared_entry_points(setup_cfg: configparser.ConfigParser) -> dict[str, dict[str, str]]:
    groups = setup_cfg["options.entry_points"]
    return {
        group: dict(line.split(" = ") for line in lines.strip().splitlines())
        for group, lines in groups.items()
    }


def test_every_file_named_in_setup_cfg_exists(
    project: Path, setup_cfg: configparser.ConfigParser
) -> None:
    metadata = setup_cfg["metadata"]
    named = [metadata["long_description"].removeprefix("file: "), metadata["license_files"]]
    named += [f"{package}/__init__.py" for package in PACKAGES]
    named += [f"{package}/py.typed" for package in PACKAGES]
    named += [setup_cfg["tool:pytest"]["testpaths"]]
    assert [name for name in named if not (project / name).exists()] == []


def test_every_declared_entry_point_can_be_loaded(setup_cfg: configparser.ConfigParser) -> None:
    for group, points in declared_entry_points(setup_cfg).items():
        for name, value in points.items():
            point = importlib.metadata.EntryPoint(name=name, value=value, group=group)
            assert callable(point.load()), f"{group}: {name} = {value}"


def test_every_direct_dependency_is_pinned_for_ci(
    project: Path, setup_cfg: configparser.ConfigParser
) -> None:
    wanted = setup_cfg["options"]["install_requires"] + setup_cfg["options.extras_require"]["test"]
    names = {line.partition(">")[0].strip() for line in wanted.strip().splitlines()}
    pins = (project / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in pins if "==" in line and line[0] != "#"}
    assert names - pinned == set()


def test_the_scripts_are_executable_and_parse(project: Path) -> None:
    for name in ("scripts/test", "scripts/check", "scripts/demo", ".ci/run"):
        assert os.access(project / name, os.X_OK), f"{name}: chmod +x"
        run = subprocess.run(["bash", "-n", project / name], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_a_wheel_carries_both_packages_the_licence_and_no_tests(wheel: Path, project: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (licence,) = (name for name in names if name.endswith("/LICENSE"))
        assert archive.read(licence) == (project / "LICENSE").read_bytes()
    modules = {
        str(path.relative_to(project))
        for package in PACKAGES
        for path in (project / package).rglob("*.py")
    }
    assert modules - set(names) == set()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


@pytest.mark.slow
def test_a_wheel_declares_what_setup_cfg_declares(
    wheel: Path, setup_cfg: configparser.ConfigParser
) -> None:
    (distribution,) = importlib.metadata.MetadataPathFinder.find_distributions(
        importlib.metadata.DistributionFinder.Context(path=[str(wheel)])
    )
    found: dict[str, dict[str, str]] = {}
    for point in distribution.entry_points:
        found.setdefault(point.group, {})[point.name] = point.value
    assert found == declared_entry_points(setup_cfg)
    assert distribution.version == fsqueue.__version__
    licence = setup_cfg["metadata"]["license_expression"]
    assert distribution.metadata["License-Expression"] == licence


@pytest.mark.slow
def test_an_installed_wheel_plans_and_works_outside_the_checkout(
    installed: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for name in ("a.txt", "b.txt"):
        (inputs / name).write_text(name)
    pool = tmp_path / "pool"
    script = str(installed / "bin" / "fsqueue")
    commands = (
        [script, "plan", "command", str(pool), str(inputs), *"-- cp {input} {output}".split()],
        [sys.executable, "-m", "fsqueue", "work", str(pool)],
        [script, "check", str(pool)],
    )
    for command in commands:
        run = run_outside(command, installed, tmp_path)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
    copies = [path.read_text() for path in (pool / "outputs").rglob("*") if path.is_file()]
    assert sorted(copies) == ["a.txt", "b.txt"]


@pytest.mark.slow
def test_an_installed_wheel_is_imported_from_where_it_was_installed(
    installed: Path, tmp_path: Path
) -> None:
    program = "import fsqueue, embed; print(fsqueue.__file__, embed.__file__, sep='\\n')"
    run = run_outside([sys.executable, "-c", program], installed, tmp_path)
    assert [Path(line).parents[1] for line in run.stdout.splitlines()] == [installed] * 2


def run_outside(
    command: list[str], installed: Path, directory: Path
) -> subprocess.CompletedProcess[str]:
    """Run outside the checkout, with the installed wheel first on the path."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_the_demonstration_model_has_the_published_shape_and_the_same_bytes_every_time(
    project: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, EsmModel

    script = runpy.run_path(str(project / "scripts" / "make_model.py"))
    first, second = tmp_path / "first", tmp_path / "second"
    script["write_random"](first)
    script["write_random"](second)

    names = sorted(path.name for path in first.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    model = EsmModel.from_pretrained(first, add_pooling_layer=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == (
        33 * 320  # token embeddings
        + 6 * (4 * (320 * 320 + 320) + 2 * 320 * 1280 + 1280 + 320 + 2 * 2 * 320)  # layers
        + 2 * 320  # last normalisation
        + 6 * 20
        + 1  # the contact head that EsmModel always has
    )
    tokenizer = AutoTokenizer.from_pretrained(first)
    assert tokenizer("LMX<mask>").input_ids == [0, 4, 20, 24, 32, 2]


@pytest.mark.slow
def test_the_demonstration_model_is_never_half_there(project: Path, tmp_path: Path) -> None:
    script = runpy.run_path(str(project / "scripts" / "make_model.py"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OSError):
        script["write_random"](tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]

"""The arrows between packages, the one door of each third-party package, and what is unsafe."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROOMS = {
    "fsqueue": (
        "version errors processes storage pool records handler command python_file gpu "
        "scheduling slurm batch broadcast worker monitor metrics history dashboard maintenance "
        "api testing cli __main__"
    ).split(),
    "embed": (
        "options outputs models inputs engine store export handlers encoder single_file query "
        "cli __main__"
    ).split(),
}
"""Each imports only from those before it."""
DOORS = {
    "filelock": {"fsqueue.storage.locks"},
    "pynvml": {"fsqueue.gpu.nvml"},
    "rich": {"fsqueue.dashboard"},
    "click": {"fsqueue.cli", "embed.cli"},
    "transformers": {"embed.models"},
    "tokenizers": {"embed.models"},
    "peft": {"embed.models.published.merge_adapter"},
    "huggingface_hub": {"embed.models.published.hub"},
    "torch": {
        "embed.models",
        "embed.engine",
        "embed.store.search",
        "embed.outputs.esm",
        "embed.outputs.virnucpro",
    },
    "safetensors": {"embed.models", "embed.outputs.claim_file", "embed.engine.self_test"},
    "lancedb": {"embed.export.lancedb_table"},
    "chromadb": {"embed.export.chroma"},
    "faiss": {"embed.export.faiss_index"},
    "indexed_gzip": {"embed.inputs.gzip_index"},
}


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by its dotted name."""
    found = {}
    for package in ROOMS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of everything a module imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def room(name: str) -> str:
    """Return the package or top-level module that a dotted name belongs to."""
    return (name.split(".") + [""])[1]


def test_every_module_is_in_a_room_that_has_a_place_in_the_order() -> None:
    for name in modules():
        package = name.split(".")[0]
        assert room(name) in {"", *ROOMS[package]}, name


@pytest.mark.parametrize("package", ROOMS)
def test_imports_between_rooms_point_one_way(package: str) -> None:
    order = ROOMS[package]
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules().items()
        if name.split(".")[0] == package and room(name) in order
        for imported in imports(tree)
        if imported.split(".")[0] == package and room(imported) in order
        if order.index(room(imported)) > order.index(room(name))
    ]
    assert not wrong


@pytest.mark.parametrize("package", DOORS)
def test_each_third_party_package_enters_through_its_door(package: str) -> None:
    users = {
        name
        for name, tree in modules().items()
        if package in {imported.split(".")[0] for imported in imports(tree)}
    }
    assert users
    inside = {
        user for user in users for door in DOORS[package] if f"{user}.".startswith(f"{door}.")
    }
    assert users == inside


def test_fsqueue_has_never_heard_of_what_it_queues() -> None:
    strangers = {"torch", "transformers", "safetensors", "numpy", "embed"}
    for name, tree in modules().items():
        if name.startswith("fsqueue"):
            assert not strangers & {i.split(".")[0] for i in imports(tree)}, name


def test_embed_uses_only_the_public_names_of_fsqueue() -> None:
    """Beside them, `storage` is public, and its command line builds on fsqueue's options."""
    import fsqueue

    allowed = {f"fsqueue.{name}" for name in [*fsqueue.__all__, "__version__"]} | {"fsqueue"}
    allowed |= {"fsqueue.storage.atomic", "fsqueue.storage.directories"}
    for name, tree in modules().items():
        if name.startswith("embed"):
            used = {i for i in imports(tree) if i.split(".")[0] == "fsqueue"}
            assert {i for i in used if not i.startswith("fsqueue.cli.options.")} <= allowed, name


def test_only_claims_renames_a_claim_and_only_atomic_touches_rename() -> None:
    """I2: rename(2) is called in storage.atomic, and in a pool by claims and leases alone.

    The doctor tries it out in private directories of its own, and `directories` gives a directory
    that is about to be removed a private name.
    """
    callers = {
        name
        for name, tree in modules().items()
        if name.startswith("fsqueue")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("rename", "renames")
    }
    callers = {name for name in callers if not name.startswith("fsqueue.maintenance.doctor.")}
    assert callers - {"fsqueue.storage.directories"} == {
        "fsqueue.storage.atomic",
        "fsqueue.pool.claims",
        "fsqueue.pool.leases",
    }


def test_only_one_module_that_runs_models_knows_cuda() -> None:
    """Everything else has a `Device`, so that another kind of device is one more module."""
    users = {
        name
        for name, tree in modules().items()
        if name.startswith(("embed.engine", "embed.models", "embed.handlers"))
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("cuda", "is_cuda", "pin_memory"))
        or (isinstance(node, ast.keyword) and node.arg == "pin_memory")
        or (isinstance(node, ast.Constant) and str(node.value).split(":")[0] == "cuda")
    }
    assert users == {"embed.engine.cuda"}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "common", "helpers", "base", "manager"}
    assert not drawers & {part for name in modules() for part in name.split(".")}


@pytest.mark.parametrize("name", modules())
def test_every_module_and_public_function_says_what_it_is_for(name: str) -> None:
    tree = modules()[name]
    assert ast.get_docstring(tree), name
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name}"


def test_absorbed_races_are_marked() -> None:
    """A swallowed FileNotFoundError or FileExistsError has a RACE comment beside it."""
    for package in ROOMS:
        for path in (ROOT / package).rglob("*.py"):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if line.strip() in ("except FileNotFoundError:", "except FileExistsError:"):
                    near = "\n".join(lines[max(0, number - 2) : number + 5])
                    handled = "RACE" in near or "raise" in near
                    assert handled, f"{path.relative_to(ROOT)}:{number + 1}"


UNSAFE = {
    *("eval", "exec", "compile", "__import__", "system", "popen", "execfile"),
    *("pickle.load", "pickle.loads", "marshal.loads", "shelve.open", "joblib.load", "yaml.load"),
}


@pytest.mark.parametrize("name", modules())
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(name: str) -> None:
    """A pool, a store and a model are data."""
    tree = modules()[name]
    used = {i.split(".")[0] for i in imports(tree) if i != "pickle.UnpicklingError"}
    assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & used
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        last = called.rpartition(".")[2]
        plain = called in UNSAFE or (called.startswith("os.") and last in UNSAFE)
        assert not plain, f"{name}: {called}"
        assert given.get("shell", "False") == "False", f"{name}: {called} with a shell"
        assert given.get("allow_pickle", "False") == "False", f"{name}: {called}"
        assert given.get("trust_remote_code", "False") == "False", f"{name}: {called}"
        if called == "torch.load":
            assert given.get("weights_only") == "True", f"{name}: torch.load of anything"


def test_importing_fsqueue_imports_nothing_heavy() -> None:
    code = (
        "import sys, fsqueue; heavy = set('torch transformers rich pynvml click numpy'.split());"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

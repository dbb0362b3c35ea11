"""A function or a Handler class in a file is enough: planned, pinned, run, refused when changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fsqueue
from fsqueue.errors import UsageError
from fsqueue.python_file.code import is_importable
from fsqueue.python_file.definitions import find_defined
from fsqueue.python_file.from_python import options_of
from tests.support.processes import environment
from tests.support.processes import fsqueue as run_fsqueue

WORDS = """\
def run(work):
    work.output.write_text(f"{len(work.input.read_text().split())}\\n")
"""
WITH_MODEL = """\
import os
suffix = ".txt"

def setup():
    with open(__file__ + ".setups", "a") as log:
        log.write(f"{os.getpid()}\\n")
    return {"factor": 3}

def run(work, model):
    work.output.write_text(str(model["factor"] * work.options["n"]))

def close():
    open(__file__ + ".closed", "w").close()
"""
A_CLASS = """\
from fsqueue import Handler, Option

class Lines(Handler):
    suffix = ".n"
    options = (Option("times", 1, "How often."),)

    def setup(self):
        self.ready = True

    def run(self, work):
        assert self.ready
        count = work.input.read_text().count("\\n")
        work.output.write_text(str(count * work.options["times"]))
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    directory = tmp_path / "texts"
    directory.mkdir()
    (directory / "a.txt").write_text("to be\nor not\n")
    (directory / "b.txt").write_text("x\n")
    return directory


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return tmp_path / "pool"


def write(tmp_path: Path, text: str, name: str = "mine.py") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def plan(pool: Path, texts: Path, file: Path | str, *words: str) -> str:
    done = run_fsqueue("plan", "python", pool, texts, "--file", str(file), "--gpus", "cpu", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def work(pool: Path) -> subprocess.CompletedProcess[str]:
    return run_fsqueue("work", pool)


def outputs(pool: Path) -> dict[str, str]:
    return {o.inputs[0].name: o.path.read_text() for o in fsqueue.open_pool(pool).outputs()}


def errors(pool: Path) -> list[str]:
    return [claim.attempts[-1].error for claim in fsqueue.open_pool(pool).failed()]


# ---- a function is enough ----


def test_a_file_with_run_is_all_it_takes(tmp_path: Path, texts: Path, pool: Path) -> None:
    plan(pool, texts, write(tmp_path, WORDS))
    assert work(pool).returncode == 0
    assert outputs(pool) == {"a.txt": "4\n", "b.txt": "1\n"}
    assert [path.name[:5] for path in (pool / "code").iterdir()] == ["mine-"]


def test_setup_runs_once_per_worker_and_its_result_reaches_every_run(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, WITH_MODEL)
    plan(pool, texts, file, "--set", "n=7")
    assert work(pool).returncode == 0
    assert outputs(pool) == {"a.txt": "21", "b.txt": "21"}
    assert {path.suffix for path in (pool / "outputs").iterdir()} == {".txt"}
    assert len(Path(f"{file}.setups").read_text().split()) == 1
    assert Path(f"{file}.closed").exists()


def test_a_handler_class_cuts_and_runs_with_its_own_options(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    plan(pool, texts, f"{write(tmp_path, A_CLASS)}:Lines", "--set", "times=10")
    assert work(pool).returncode == 0
    assert outputs(pool) == {"a.txt": "20", "b.txt": "10"}


def test_what_settings_a_class_does_not_declare_are_refused(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, A_CLASS)
    done = run_fsqueue("plan", "python", pool, texts, "--file", file, "--set", "tiems=10")
    assert done.returncode == 2
    assert "has no option 'tiems'" in done.stderr
    assert not pool.exists()


def test_an_error_of_run_is_charged_with_its_traceback(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, "def run(work):\n    raise ValueError('bad ' + work.input.name)\n")
    plan(pool, texts, file, "--attempts", "1")
    assert work(pool).returncode == 3
    failed = fsqueue.open_pool(pool).failed()
    assert [claim.attempts[0].error for claim in failed] == [
        "ValueError: bad a.txt",
        "ValueError: bad b.txt",
    ]
    assert "raise ValueError('bad ' + work.input.name)" in "\n".join(
        failed[0].attempts[0].output_lines
    )


def test_a_run_that_writes_nothing_fails_by_its_name(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, "def run(work):\n    pass\n")
    plan(pool, texts, file, "--attempts", "1")
    assert work(pool).returncode == 3
    assert errors(pool) == [f"run of {file} returned without writing work.output"] * 2


# ---- pinned ----


def test_a_file_that_changed_fails_its_claims_by_name_before_anything_of_it_runs(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, WORDS)
    plan(pool, texts, file)
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{WORDS}")
    assert work(pool).returncode == 3
    assert all(error.startswith(f"{file} changed since it was planned") for error in errors(pool))
    assert len(errors(pool)) == 2 and not (tmp_path / "ran").exists()


def test_planning_again_after_an_edit_replaces_what_has_not_run(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, WORDS)
    plan(pool, texts, file)
    file.write_text(WORDS.replace("split()", "splitlines()"))
    assert "2 claims of former versions superseded" in plan(pool, texts, file)
    assert work(pool).returncode == 0
    assert outputs(pool) == {"a.txt": "2\n", "b.txt": "1\n"}


def test_planning_the_same_file_again_adds_nothing(tmp_path: Path, texts: Path, pool: Path) -> None:
    file = write(tmp_path, WORDS)
    plan(pool, texts, file)
    os.utime(file)
    assert "2 inputs planned before" in plan(pool, texts, file)


def test_where_the_file_cannot_be_seen_the_pools_copy_runs(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, WORDS)
    plan(pool, texts, file)
    file.unlink()
    assert work(pool).returncode == 0
    assert outputs(pool) == {"a.txt": "4\n", "b.txt": "1\n"}


def test_a_copy_that_was_edited_in_the_pool_is_not_run(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    plan(pool, texts, write(tmp_path, WORDS))
    (copy,) = (pool / "code").iterdir()
    copy.chmod(0o600)
    copy.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{WORDS}")
    assert work(pool).returncode == 3
    assert all("is not what was planned" in error for error in errors(pool))
    assert not (tmp_path / "ran").exists()


def test_code_that_cannot_be_loaded_or_set_up_charges_no_claim(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, f"{WORDS}\ndef setup():\n    raise RuntimeError('no GPU')\n")
    plan(pool, texts, file)
    done = work(pool)
    assert done.returncode == 5
    assert "left to other workers" in done.stderr and "no GPU" in done.stderr
    assert "line 5" in done.stderr
    waiting = [path.name for path in (pool / "spools/cpu0").iterdir()]
    assert len(waiting) == 2 and all(".a0." in name for name in waiting)


def test_a_file_that_imports_what_lies_beside_it_is_refused_with_the_line(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    write(tmp_path, "x = 1\n", "beside_it.py")
    file = write(tmp_path, f"import os\nimport beside_it\n{WORDS}")
    done = run_fsqueue("plan", "python", pool, texts, "--file", file)
    assert done.returncode == 2
    assert f"{file}, line 2: imports beside_it, which lies beside it" in done.stderr
    assert not pool.exists()


def test_planning_a_function_executes_nothing_of_its_file(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(tmp_path, f"raise SystemExit(9)\n{WORDS}")
    plan(pool, texts, file)


def test_a_dry_run_keeps_nothing(tmp_path: Path, texts: Path, pool: Path) -> None:
    plan(pool, texts, write(tmp_path, WORDS), "--dry-run")
    assert not pool.exists()


# ---- finding what is to run ----


@pytest.mark.parametrize(
    ("source", "wanted", "complaint"),
    [
        ("x = 1\n", None, "defines neither run"),
        ("def run(work): pass\n", "walk", "defines no 'walk'"),
        ("def run(): pass\n", None, "takes no argument"),
        ("def run(work, model): pass\n", None, "takes 2 arguments"),
        ("def run(a, b, c): pass\ndef setup(): pass\n", None, "takes 3 arguments"),
        ("def run(work:\n", None, "line 1: is not Python"),
        ("\0", None, "is not Python"),
        ("class A(Handler): pass\nclass B(Handler): pass\n", None, "A and B"),
        ("class A(Handler): pass\ndef run(work): pass\n", None, "A and run"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    source: str, wanted: str | None, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        find_defined(source.encode(), "f.py", wanted)


def test_the_last_of_derived_handlers_is_the_one() -> None:
    source = b"import fsqueue\nclass A(fsqueue.Handler): pass\nclass B(A): suffix = '.b'\n"
    assert find_defined(source, "f.py", None).name == "B"


def test_a_function_may_be_imported_or_assigned() -> None:
    assert find_defined(b"from json import dump as run\n", "f.py", None).name == "run"
    assert find_defined(b"walk = print\n", "f.py", "walk").name == "walk"


def test_what_only_the_scripts_directory_provides_is_not_importable() -> None:
    assert is_importable("json") and is_importable("pytest") and is_importable("fsqueue")
    assert not is_importable("no_such_module_anywhere")


# ---- from Python ----

SCRIPT = """\
import sys
import fsqueue

def count(work):
    work.output.write_text(str(len(work.input.read_text()) * work.options.get("times", 1)))

if __name__ == "__main__":
    pool, texts = sys.argv[1:]
    fsqueue.plan(pool, count, [texts], {"times": 2, "suffix": ".len"}, gpus="cpu")
    sys.exit(fsqueue.open_pool(pool).run(workers=1, dashboard=False))
"""


def run_script(
    path: Path, *words: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(path), *map(str, words)]
    return subprocess.run(command, env=environment(env), capture_output=True, text=True, timeout=60)


def test_a_script_plans_a_function_of_its_own_and_runs_it(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    done = run_script(write(tmp_path, SCRIPT), pool, texts)
    assert done.returncode == 0, done.stderr
    assert outputs(pool) == {"a.txt": "26", "b.txt": "4"}
    assert {path.suffix for path in (pool / "outputs").iterdir()} == {".len"}


def test_a_script_that_would_plan_again_in_every_worker_is_refused(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    unguarded = SCRIPT.replace('if __name__ == "__main__":', "for _ in range(1):")
    done = run_script(write(tmp_path, unguarded), pool, texts)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert not pool.exists()


def test_a_function_of_an_installed_module_is_imported_by_its_name(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    write(site, WORDS, "counting.py")
    env = {"PYTHONPATH": str(site)}
    script = SCRIPT.replace("def count", "def unused").replace(
        "import fsqueue\n", "import fsqueue\nfrom counting import run as count\n"
    )
    done = run_script(write(tmp_path, script), pool, texts, env=env)
    assert done.returncode == 0, done.stderr
    assert outputs(pool) == {"a.txt": "4\n", "b.txt": "1\n"}
    assert not (pool / "code").exists()


def test_a_worker_with_another_version_of_a_module_leaves_its_claims_to_others(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    for name, source in (("one", WORDS), ("two", WORDS + "# newer\n")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, source, "counting.py")
    one, two = ({"PYTHONPATH": str(tmp_path / name)} for name in ("one", "two"))
    function = ("--function", "counting:run", "--gpus", "cpu")
    assert run_fsqueue("plan", "python", pool, texts, *function, env=one).returncode == 0
    done = run_fsqueue("work", pool, env=two)
    assert done.returncode == 5 and "is not here what it was" in done.stderr
    assert run_fsqueue("work", pool, env=one).returncode == 0


def test_what_workers_could_not_find_again_is_refused() -> None:
    with pytest.raises(UsageError, match="top level"):
        options_of(lambda work: None)
    with pytest.raises(UsageError, match="top level"):
        options_of(Path("x").write_text)


def test_options_that_are_not_json_are_refused(texts: Path, pool: Path) -> None:
    with pytest.raises(UsageError, match="JSON"):
        fsqueue.plan(pool, Path.exists, [texts], {"model": object()})


def test_help_creates_no_handler(tmp_path: Path) -> None:
    from tests.support.handlers import install_handler

    source = (
        "import fsqueue\n\nclass Made(fsqueue.Handler):\n"
        '    """Count."""\n\n    def __init__(self):\n        raise SystemExit(9)\n'
    )
    env = install_handler(tmp_path / "site", "fussy", source)
    listed = run_fsqueue("plan", "--help", env=env)
    assert listed.returncode == 0 and "Count." in listed.stdout
    assert run_fsqueue("plan", "fussy", "--help", env=env).returncode == 0


def test_a_handler_class_is_told_which_gpus_are_planned_for(
    tmp_path: Path, texts: Path, pool: Path
) -> None:
    file = write(
        tmp_path,
        "import fsqueue\n\nclass Told(fsqueue.Handler):\n    suffix = '.txt'\n\n"
        "    def for_gpus(self, options, gpus):\n"
        "        return {**options, 'gpus': [each.model for each in gpus]}\n\n"
        "    def run(self, work):\n"
        "        work.output.write_text(', '.join(work.options['gpus']))\n",
    )
    planned = run_fsqueue("plan", "python", pool, texts, "--file", file, "--gpus", "h100,cpu")
    assert planned.returncode == 0, planned.stderr
    assert work(pool).returncode == 0
    assert set(outputs(pool).values()) == {"H100, cpu"}

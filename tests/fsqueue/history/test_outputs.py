"""Which output is which input's, several inputs in one claim, and outputs under inputs' names."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

import fsqueue
from fsqueue.errors import PoolError, UsageError
from fsqueue.history.outputs import Output, _refuse_bad_names
from tests.support.processes import fsqueue as run_fsqueue


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Five files in two directories; two of one name."""
    for name in ("texts/a.txt", "texts/b.txt", "texts/c.txt", "texts/sub/a.txt", "texts/sub/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(name)
    return tmp_path / "texts"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return tmp_path / "pool"


def plan(pool: Path, texts: Path, *words: str) -> None:
    options, dashes, argv = list(words), [], []  # type: ignore[var-annotated]
    if "--" in options:
        at = options.index("--")
        options, dashes, argv = options[:at], ["--"], options[at + 1 :]
    done = run_fsqueue(
        "plan", "command", pool, texts, "-r", "--gpus", "cpu", *options, *dashes, *argv
    )
    assert done.returncode == 0, done.stderr


def work(pool: Path) -> int:
    return run_fsqueue("work", pool).returncode


def tree(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


LINKED = {
    "a.txt.up": "TEXTS/A.TXT",
    "b.txt.up": "TEXTS/B.TXT",
    "c.txt.up": "TEXTS/C.TXT",
    "sub/a.txt.up": "TEXTS/SUB/A.TXT",
    "sub/d.txt.up": "TEXTS/SUB/D.TXT",
}
UP = ("--suffix", ".up", "--", "dd", "conv=ucase", "status=none", "if={input}")


def test_each_line_is_an_input_and_its_output(pool: Path, texts: Path) -> None:
    plan(pool, texts, *UP)
    assert work(pool) == 0
    listed = run_fsqueue("outputs", pool)
    assert (listed.returncode, listed.stderr) == (0, "")
    pairs = dict(line.split("\t") for line in listed.stdout.splitlines())
    assert len(pairs) == 5
    for source, output in pairs.items():
        assert Path(output).read_text() == Path(source).read_text().upper()
    rows = json.loads(run_fsqueue("outputs", pool, "--json").stdout)["outputs"]
    assert {row["inputs"][0]: row["output"] for row in rows} == pairs


def test_links_have_the_inputs_names_and_are_the_outputs(
    tmp_path: Path, pool: Path, texts: Path
) -> None:
    plan(pool, texts, *UP)
    assert work(pool) == 0
    done = run_fsqueue("outputs", pool, "--link", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"5 outputs laid into {tmp_path / 'out'}.\n")
    assert tree(tmp_path / "out") == LINKED
    inodes = {path.stat().st_ino for path in (pool / "outputs").glob("*.up")}
    assert (tmp_path / "out/a.txt.up").stat().st_ino in inodes
    again = run_fsqueue("outputs", pool, "--link", tmp_path / "out")
    assert again.stdout.startswith("0 outputs laid") and "5 there before" in again.stdout


def test_what_is_in_the_way_is_left_alone_and_named(
    tmp_path: Path, pool: Path, texts: Path
) -> None:
    plan(pool, texts, *UP)
    assert work(pool) == 0
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b.txt.up").write_text("mine")
    done = run_fsqueue("outputs", pool, "--link", tmp_path / "out")
    assert done.returncode == 1
    assert f"{tmp_path}/out/b.txt.up is another file, and was left alone." in done.stderr
    assert tree(tmp_path / "out") == LINKED | {"b.txt.up": "mine"}


def test_several_inputs_are_one_claim_and_its_tar_has_one_file_for_each(
    tmp_path: Path, pool: Path, texts: Path
) -> None:
    plan(pool, texts, "--per-claim", "4", *UP)
    assert len(list((pool / "spools/cpu0").iterdir())) == 2
    assert work(pool) == 0
    archives = sorted((pool / "outputs").glob("*.tar"))
    assert len(archives) == 2 and list((pool / "done").iterdir())
    found = {}
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None and (member.mtime, member.uid) == (0, 0)
                found[member.name] = file.read().decode()
    assert found["2-a.txt.up"] == "TEXTS/SUB/A.TXT" and len(found) == 5
    lines = run_fsqueue("outputs", pool).stdout.splitlines()
    assert len(lines) == 5 and all(".tar:" in line for line in lines)
    done = run_fsqueue("outputs", pool, "--link", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == LINKED
    again = run_fsqueue("outputs", pool, "--link", tmp_path / "out")
    assert "5 there before" in again.stdout


def test_the_tars_of_two_pools_are_the_same_bytes(tmp_path: Path, texts: Path) -> None:
    found = []
    for name in ("one", "two"):
        plan(tmp_path / name, texts, "--per-claim", "5", *UP)
        assert work(tmp_path / name) == 0
        (archive,) = (tmp_path / name / "outputs").glob("*.tar")
        found.append((archive.name, archive.read_bytes()))
    assert found[0] == found[1]


def test_all_inputs_of_a_claim_go_to_one_process(pool: Path, texts: Path) -> None:
    plan(pool, texts, "--per-claim", "5", "--", "cat", "{inputs}")
    assert work(pool) == 0
    (output,) = (pool / "outputs").glob("*.out")
    text = output.read_text()
    assert text.startswith("texts/a.txttexts/b.txt") and len(text) == sum(map(len, LINKED)) + 15


def test_the_input_that_fails_is_named_and_nothing_of_its_claim_is_published(
    pool: Path, texts: Path
) -> None:
    words = ("--per-claim", "5", "--attempts", "1", "--", "grep", "txt", "{input}")
    (texts / "b.txt").write_text("nothing of the kind")
    plan(pool, texts, *words)
    assert work(pool) == 3
    (claim,) = fsqueue.open_pool(pool).failed()
    assert claim.attempts[0].error.startswith(f"input 2 of 5, {texts / 'b.txt'}: grep exited with")
    assert not [name for name in os.listdir(pool / "outputs") if not name.startswith(".")]


def test_outputs_of_a_former_version_of_an_input_are_left_out(pool: Path, texts: Path) -> None:
    plan(pool, texts, *UP)
    assert work(pool) == 0
    (texts / "b.txt").write_text("newer text")
    plan(pool, texts, *UP)
    before = run_fsqueue("outputs", pool)
    assert len(before.stdout.splitlines()) == 4 and "1 claim not done yet" in before.stderr
    assert work(pool) == 0
    made = {o.inputs[0]: o.path.read_text() for o in fsqueue.open_pool(pool).outputs()}
    assert len(made) == 5 and made[texts / "b.txt"] == "NEWER TEXT"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--per-claim", "0", "--", "cat", "{input}"), "--per-claim 0"),
        (("--per-claim", "2", "--", "cat", "x{inputs}"), "one of its own"),
        (("--per-claim", "2", "--", "cat", "{inputs}", "{input}"), "use one of them"),
    ],
)
def test_what_several_inputs_cannot_be_is_refused(
    pool: Path, texts: Path, words: tuple[str, ...], complaint: str
) -> None:
    done = run_fsqueue("plan", "command", pool, texts, *words)
    assert done.returncode == 2 and complaint in done.stderr
    assert not pool.exists()


def test_links_are_not_made_inside_the_pool(pool: Path, texts: Path) -> None:
    plan(pool, texts, *UP)
    with pytest.raises(UsageError, match="inside the pool"):
        fsqueue.open_pool(pool).link_outputs(pool / "outputs")


@pytest.mark.parametrize(
    "wrong",
    [
        Output("x", Path("/p/x"), (Path("/a/../b"),)),
        Output("x", Path("/p/x"), (Path("b"),)),
        Output("x", Path("/p/x"), (Path("/b"),), ("../b",)),
        Output("x", Path("/p/x"), (Path("/b"),), ("..",)),
    ],
)
def test_names_that_lead_out_of_the_directory_are_refused(wrong: Output) -> None:
    with pytest.raises(PoolError, match="edited"):
        _refuse_bad_names(wrong)

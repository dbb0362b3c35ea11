"""The Python of the README runs: plan, run with two workers, wait, read the outputs, retry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fsqueue
from tests.support.processes import environment

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    section = README.partition("## From Python")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section.partition("\n## ")[0], re.M | re.S)
    monkeypatch.chdir(tmp_path)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    Path("texts").mkdir()
    Path("texts/one.txt").write_text("a virus\nand another virus\n")
    Path("texts/two.txt").write_text("virus\n")
    Path("texts/none.txt").write_text("nothing of the kind\n")

    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    printed = capfd.readouterr().out
    assert "2 done, 1 failed" in printed
    assert "one.txt 2" in printed and "two.txt 1" in printed
    assert re.search(r"^none-\w+ grep exited with status 1", printed, re.M)

    pool = fsqueue.open_pool("pool")
    snapshot = pool.snapshot()
    assert (snapshot.count.waiting.claims, snapshot.exit_status) == (1, 5), "it was put back"
    assert {output.inputs[0].name for output in pool.outputs()} == {"one.txt", "two.txt"}
    assert pool.run(workers=1) == 3 and len(pool.failed()) == 1


def test_every_public_name_exists_and_is_documented() -> None:
    for name in fsqueue.__all__:
        assert getattr(fsqueue, name).__doc__, name

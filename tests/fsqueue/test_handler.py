"""What a handler is, what fsqueue does for it, and the registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue import handler
from fsqueue.errors import BadInput, NotSupportedError, UsageError
from fsqueue.handler import (
    Handler,
    Item,
    Source,
    Work,
    claim_id,
    load_handler,
    registered,
    source_key,
)
from fsqueue.pool.names import ID
from tests.support.crash import every_crash
from tests.support.interleave import interpose


class Words(Handler):
    """The smallest handler: the one in the module's docstring."""

    name = "words"
    suffix = ".txt"

    def run(self, work: Work) -> None:
        text = work.input.read_text()
        work.output.write_text(f"{len(text.split())}\n")


class Picky(Words):
    """One option decides the result, the other does not."""

    def result_options(self, options: Any) -> Any:
        return {"model": options["model"]}


def make_work(tmp_path: Path, **facts: Any) -> Work:
    values: dict[str, Any] = {
        "id": "x-1",
        "kind": "words",
        "cost": 1,
        "attempt": 0,
        "payload": {"input": str(tmp_path / "in.txt")},
        "options": {},
        "output": tmp_path / "out.txt",
        "partial": str(tmp_path / "partial"),
        "is_stopping": lambda: False,
        "report": lambda done, total, measures: None,
        "warn": lambda text: None,
    }
    return Work(**values | facts)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return make_work(tmp_path)


# ---- what the defaults do ----


def test_the_smallest_handler_surveys_cuts_and_runs_a_file(tmp_path: Path, work: Work) -> None:
    work.input.write_text("to be or not")
    handler = Words()
    source = handler.survey(str(work.input), {})
    assert (source.cost, source.measures) == (12, {"inputs": 1})
    (item,) = handler.cut([source], {}, cost_max=1)
    assert (item.stem, item.kind, item.cost) == ("in", "words", 12)
    assert item.payload["input"] == str(work.input)
    handler.run(work)
    assert work.output.read_text() == "4\n"


def test_an_empty_file_still_costs_something(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert Words().survey(str(tmp_path / "empty"), {}).cost == 1


def test_an_input_that_is_not_there_is_a_bad_input_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing: No such file"):
        Words().survey(str(tmp_path / "nothing"), {})


def test_a_handler_must_have_run(work: Work) -> None:
    with pytest.raises(NotImplementedError):
        Handler().run(work)


def test_by_default_a_handler_has_nothing_loaded_and_nothing_to_close() -> None:
    assert Words().loaded() == []
    Words().close()


# ---- identity ----


def item(**facts: Any) -> Item:
    values: dict[str, Any] = {
        "stem": "out",
        "kind": "k",
        "cost": 3,
        "identity": {"key": "abc", "range": [0, 7]},
        "payload": {},
    }
    return Item(**values | facts)


def test_the_same_work_has_the_same_id_wherever_it_is_planned() -> None:
    options = {"model": "m", "batch": 8}
    assert claim_id(Picky(), options, item()) == claim_id(Picky(), options | {"batch": 9}, item())
    other_order = item(identity={"range": [0, 7], "key": "abc"})
    assert claim_id(Words(), options, item()) == claim_id(Words(), options, other_order)
    assert claim_id(Words(), options, item(cost=9)) == claim_id(Words(), options, item())


@pytest.mark.parametrize(
    "other",
    [
        claim_id(Picky(), {"model": "n"}, item()),
        claim_id(Picky(), {"model": "m"}, item(identity={"key": "abd", "range": [0, 7]})),
        claim_id(Picky(), {"model": "m"}, item(identity={"key": "abc", "range": [0, 8]})),
        claim_id(Words(), {"model": "m", "batch": 8}, item()),
    ],
)
def test_other_work_has_another_id(other: str) -> None:
    assert claim_id(Picky(), {"model": "m"}, item()) != other


def test_another_handler_has_other_ids() -> None:
    first, second = Words(), Words()
    second.name = "letters"
    assert claim_id(first, {}, item()) != claim_id(second, {}, item())


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers()))
def test_an_id_is_legal_whatever_the_input_is_called(stem: str, identity: dict[str, Any]) -> None:
    assert ID.fullmatch(claim_id(Words(), {}, item(stem=stem, identity=identity)))


def test_an_input_has_one_key_under_the_options_that_decide() -> None:
    source = Source("/x", "abc", 3)
    key = source_key(Picky(), {"model": "m", "batch": 1}, source)
    assert key == source_key(Picky(), {"model": "m", "batch": 2}, source)
    assert key != source_key(Picky(), {"model": "n", "batch": 1}, source)
    assert key != source_key(Picky(), {"model": "m"}, Source("/x", "abd", 3))


def test_a_file_that_changed_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("one")
    before = Words().survey(str(path), {}).key
    path.write_text("two!")
    assert Words().survey(str(path), {}).key != before


# ---- work ----


def test_progress_warnings_and_the_wish_to_stop_reach_the_worker(tmp_path: Path) -> None:
    reports: list[Any] = []
    work = make_work(
        tmp_path,
        report=lambda done, total, measures: reports.append((done, total, dict(measures))),
        warn=reports.append,
        is_stopping=lambda: bool(reports),
    )
    assert not work.stopping
    work.progress(1, 2, residues=5)
    work.warn("odd")
    assert reports == [(1, 2, {"residues": 5}), "odd"]
    assert work.stopping


def test_the_next_run_sees_every_checkpoint(tmp_path: Path, work: Work) -> None:
    assert work.checkpoints() == {}
    assert not work.saved
    work.checkpoint("part.1", b"one")
    work.checkpoint("part.2", b"two")
    assert work.saved
    assert make_work(tmp_path).checkpoints() == {"part.1": b"one", "part.2": b"two"}


def test_a_checkpoint_that_is_there_is_never_replaced(work: Work) -> None:
    """A zombie saved it first; its bytes are as good."""
    work.checkpoint("part.1", b"first")
    work.checkpoint("part.1", b"second")
    assert work.checkpoints() == {"part.1": b"first"}


def test_a_checkpoint_is_saved_though_a_zombie_removes_the_directory_under_it(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie published the claim's output and removed its checkpoints."""
    removed: list[str] = []

    def open_(real: Callable[..., int], path: str, *args: Any) -> int:
        if not removed:
            removed.append(path)
            os.rmdir(work.partial)
        return real(path, *args)

    interpose(monkeypatch, open=open_)
    work.checkpoint("part.1", b"one")
    assert work.checkpoints() == {"part.1": b"one"}
    assert removed


def test_half_written_checkpoints_are_not_seen(work: Work) -> None:
    work.checkpoint("part.1", b"one")
    Path(work.partial, ".part.2.77-abc").write_bytes(b"ha")
    Path(work.partial, "a b").write_bytes(b"not ours")
    assert work.checkpoints() == {"part.1": b"one"}


def test_a_crash_at_any_operation_of_saving_leaves_the_checkpoint_whole_or_not_there(
    tmp_path: Path,
) -> None:
    def prepare(n: int) -> Work:
        (tmp_path / str(n)).mkdir()
        return make_work(tmp_path / str(n))

    seen = [
        work.checkpoints()
        for _, work in every_crash(prepare, lambda work: work.checkpoint("part", b"all"))
    ]
    assert seen[0] == {} and seen[-1] == {"part": b"all"}
    assert all(found in ({}, {"part": b"all"}) for found in seen)


def test_a_checkpoint_removed_while_being_read_is_skipped(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim's last owner is removing them after finishing."""
    work.checkpoint("part.1", b"one")
    work.checkpoint("part.2", b"two")

    def open_(real: Callable[..., int], path: str, *args: Any) -> int:
        if path.endswith("part.1") and os.path.exists(path):
            os.unlink(path)
        return real(path, *args)

    interpose(monkeypatch, open=open_)
    monkeypatch.setattr("fsqueue.storage.atomic.time.sleep", lambda s: None)
    ticks = iter(range(0, 1000, 1))
    monkeypatch.setattr("fsqueue.storage.atomic.time.monotonic", lambda: float(next(ticks)))
    assert work.checkpoints() == {"part.2": b"two"}


@pytest.mark.parametrize("name", ["../x", "", ".x", "a/b", "x" * 101, "a\n"])
def test_a_checkpoint_stays_in_its_claims_directory(work: Work, name: str) -> None:
    with pytest.raises(AssertionError):
        work.checkpoint(name, b"x")


# ---- the registry ----


def test_the_handlers_of_this_project_are_registered() -> None:
    assert {"command", "embed"} <= set(registered())
    assert load_handler("command").name == "command"


def test_a_missing_handler_is_named_with_those_installed() -> None:
    with pytest.raises(UsageError, match=r"no handler is called 'fold'; installed:.*command"):
        load_handler("fold")


def register(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint(name="made", value=value, group=handler.GROUP)
    monkeypatch.setattr(handler, "registered", lambda: {"made": entry})


def test_a_handler_gets_the_name_it_is_registered_under(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "fsqueue.command:Command")
    assert load_handler("made").name == "made"


@pytest.mark.parametrize("value", ["no_such_module:Made", "fsqueue.no_such_module:Made"])
def test_a_handler_without_its_package_raises_with_advice(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, value)
    with pytest.raises(NotSupportedError, match=r"cannot be imported.*pip install it"):
        load_handler("made")


def test_a_broken_entry_point_is_a_clean_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, "fsqueue.command:Made")
    with pytest.raises(NotSupportedError, match="made"):
        load_handler("made")

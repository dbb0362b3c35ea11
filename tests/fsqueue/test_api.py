"""The public functions do what the commands do, and refuse what they refuse, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fsqueue
from fsqueue.errors import UsageError
from fsqueue.handler import complete_options, load_handler, registered
from fsqueue.pool import claims
from fsqueue.pool.layout import Order
from tests.support.pools import ManualWorker

COUNT = {"argv": ["wc", "-c", "{input}"]}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def pool(tmp_path: Path, texts: Path) -> fsqueue.Pool:
    root = tmp_path / "pool"
    result = fsqueue.plan(root, "command", texts, COUNT, gpus="cpux2")
    assert (result.total.claims, result.bad) == (2, [])
    return fsqueue.open_pool(root)


def test_inputs_that_were_planned_before_add_nothing(pool: fsqueue.Pool, texts: Path) -> None:
    assert fsqueue.plan(pool.root, "command", texts, COUNT).total.claims == 0
    assert pool.snapshot().count.planned.claims == 2


def test_a_dry_run_plans_the_same_and_makes_no_pool(tmp_path: Path, texts: Path) -> None:
    root = tmp_path / "preview"
    result = fsqueue.plan(root, "command", texts, COUNT, gpus="cpux2", dry_run=True)
    assert result.total.claims == 2 and not root.exists()


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_handler_accepts_its_own_defaults(name: str) -> None:
    """A default may lie outside the choices: then the handler chooses by what it is given."""
    handler = load_handler(name)
    required = {option.name: "x" for option in handler.options if option.required}
    options = complete_options(handler, required)
    for option in handler.options:
        assert options[option.name] == required.get(option.name, option.default)


@pytest.mark.parametrize(
    ("handler", "options", "message"),
    [
        ("command", {"arg": []}, "the handler 'command' has no option 'arg'; it has: "),
        ("embed", {}, "the handler 'embed' needs the option 'model': "),
        (
            "embed",
            {"model": "m", "pooling": "sum"},
            "pooling is one of mean, mean-all, cls",
        ),
        ("embed", {"model": "m", "long": "cut"}, "long is one of truncate, window, fail, not"),
    ],
)
def test_options_that_a_handler_does_not_have_are_refused(
    tmp_path: Path, texts: Path, handler: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        fsqueue.plan(tmp_path / "pool", handler, texts, options)
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    "wrong", [{"claim_seconds": 0}, {"claim_seconds": float("nan")}, {"min_tier": "tpu"}]
)
def test_an_impossible_request_is_refused_before_a_pool_is_made(
    tmp_path: Path, texts: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        fsqueue.plan(tmp_path / "pool", "command", texts, COUNT, **wrong)
    assert not (tmp_path / "pool").exists()


def test_a_run_without_workers_is_refused(pool: fsqueue.Pool) -> None:
    with pytest.raises(UsageError, match="at least one"):
        pool.run(workers=0)


def test_a_worker_in_no_known_role_is_refused_before_it_begins(pool: fsqueue.Pool) -> None:
    with pytest.raises(UsageError, match="a tier is one of gpu, cpu, storage"):
        pool.work(fsqueue.WorkOptions(role="tpu"))
    assert pool.snapshot().workers == ()


def test_what_was_cancelled_has_failed_until_it_is_retried(pool: fsqueue.Pool) -> None:
    assert len(pool.cancel_all(dry_run=True).cancelled) == 2
    assert pool.snapshot().count.waiting.claims == 2, "a dry run changes nothing"
    assert len(pool.cancel_all().cancelled) == 2
    assert (pool.snapshot().exit_status, len(pool.failed())) == (3, 2)
    id = pool.failed()[0].name.id
    assert [retried.id for retried in pool.retry([id])] == [id]
    assert len(pool.retry()) == 1 and pool.failed() == []


def test_to_cancel_nothing_in_particular_is_refused(pool: fsqueue.Pool) -> None:
    with pytest.raises(UsageError, match="cancel_all"):
        pool.cancel([])


def test_orders_are_given_and_withdrawn(pool: fsqueue.Pool) -> None:
    pool.drain(order=Order.PAUSE)
    assert pool.snapshot().orders
    pool.undo_drain()
    assert not pool.snapshot().orders


def test_wait_gives_up_at_its_timeout_and_returns_what_it_saw_last(pool: fsqueue.Pool) -> None:
    seen: list[fsqueue.Snapshot] = []
    last = pool.wait(timeout_s=0.0, on_snapshot=seen.append)
    assert seen == [last]
    assert (last.finished, last.exit_status) == (False, 5)


def test_outputs_are_paired_with_their_inputs(pool: fsqueue.Pool, texts: Path) -> None:
    assert list(pool.outputs()) == []
    for spool in ("cpu0", "cpu1"):
        worker = ManualWorker(pool, spool, handler=load_handler("command"))
        while claims.waiting(pool, spool):
            worker.run(worker.take())
    outputs = list(pool.outputs())
    assert [output.inputs for output in outputs] == [(texts / "one.txt",), (texts / "two.txt",)]
    for output in outputs:
        assert output.path.read_text().split() == ["7", str(output.inputs[0])]
    assert pool.wait().exit_status == 0


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_no_duration_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(fsqueue.UsageError, match="--timeout"):
        fsqueue.plan(
            tmp_path / "pool", "command", [__file__], {"argv": ["cat", "{input}"]},
            timeout_s=seconds,
        )  # fmt: skip
    assert not (tmp_path / "pool").exists()

"""The bar of `Pool.wait(progress=True)`: on a terminal, in a log, in a notebook."""

from __future__ import annotations

import io
import os
import pty
from pathlib import Path

import pytest

import fsqueue
from fsqueue.dashboard.progress_bar import ProgressBar, as_html, bar
from tests.support.monitor_data import snapshot, spool_row
from tests.support.processes import fsqueue as run_fsqueue

WIDE = {"eta_s": 720.0, "eta_low_s": 480.0, "eta_high_s": 1170.0}


def test_the_bar_is_filled_by_cost_and_says_how_sure_the_eta_is() -> None:
    text = bar(snapshot([spool_row("gpu0")], **WIDE), ascii=True)
    assert text.startswith(" 65.6% ###################-----------")
    assert text.endswith("40 of 61 done, 1 running, 20 waiting, ETA 12m00s (8m00s to 19m30s)")


def test_a_log_gets_a_line_now_and_then_and_the_last() -> None:
    file, now = io.StringIO(), [0.0]
    drawn = ProgressBar(file, clock=lambda: now[0])
    for now[0] in (0.0, 10.0, 31.0, 40.0):
        drawn.show(snapshot([spool_row("gpu0")]))
    drawn.close()
    assert len(file.getvalue().splitlines()) == 2


def test_html_escapes_what_it_shows() -> None:
    shown = as_html(snapshot([spool_row("gpu0")], counters={"<b>": 3}))
    assert "&lt;b&gt;" in shown and 'value="0.6557"' in shown


def test_a_terminal_gets_one_line_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as file:
        drawn = ProgressBar(file)
        drawn.show(snapshot([spool_row("gpu0")]))
        drawn.show(snapshot([spool_row("gpu0", done=41)]))
        drawn.close()
        shown = b""
        while b"\n" not in shown:  # what was written arrives in pieces
            shown += os.read(leader, 10_000)
    os.close(leader)
    text = shown.decode()
    assert text.count("\r\x1b[K") == 2 and text.count("\n") == 1
    assert "█" in text and len(text.splitlines()[-1]) < 100


def test_waiting_with_progress_ends_with_all_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("a")
    argv = {"argv": ["cat", "{input}"]}
    fsqueue.plan(tmp_path / "pool", "command", tmp_path / "a.txt", argv, gpus="cpu")
    assert run_fsqueue("work", tmp_path / "pool").returncode == 0
    fsqueue.open_pool(tmp_path / "pool").wait(progress=True)
    assert capsys.readouterr().err == "1 of 1 done\n"


def test_a_notebook_gets_one_display_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    display = pytest.importorskip("IPython.display")
    from IPython.testing.globalipapp import start_ipython  # a real shell, without a terminal

    shell = start_ipython()
    monkeypatch.setitem(__import__("sys").modules, "ipykernel", display)
    sent: list[tuple[dict[str, str], bool]] = []
    publisher = shell.display_pub
    monkeypatch.setattr(
        publisher, "publish", lambda data, update=False, **_: sent.append((data, update))
    )
    drawn = ProgressBar(io.StringIO())
    drawn.show(snapshot([spool_row("gpu0")]))
    drawn.show(snapshot([spool_row("gpu0", done=41)]))
    drawn.close()
    assert [update for _, update in sent] == [False, True]
    assert "<progress" in sent[1][0]["text/html"] and "41 of 62 done" in sent[1][0]["text/plain"]

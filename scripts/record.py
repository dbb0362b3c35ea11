#!/usr/bin/env python3
"""Record `fsqueue watch` over a run of four workers, as docs/watching.md shows it.

    scripts/record.py            in a new temporary directory; needs tmux; a minute or two
    scripts/record.py --rows 30

687 real proteins are embedded by four workers that share the CPUs of this machine; one of them is
killed half-way. Two terminals of 80 and 120 columns watch, and what they show at certain points is
written to docs/watching.md as text, captured by tmux.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FSQUEUE = (sys.executable, "-m", "fsqueue")
WIDTHS = (80, 120)
SPOOLS = ("gpu0", "gpu1", "gpu2", "gpu3")
POINTS = (2.0, 25.0, 55.0, 85.0)
KILL_AT = 45.0
DEADLINE_S = 900.0
ENVIRONMENT = os.environ | {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TERM": "screen-256color",
}
HEAD = """# Watching a pool

What does `fsqueue watch` show, and how do I read it?

One row per spool. `queue` is how many claims wait there, and `left` is their share of all waiting
work; `done` is what the spool's workers have finished, stolen claims included; `stolen` is claims
stolen by its workers (+) and from its queue (-). Totals are counted on disk and right at each
refresh, whatever was killed meanwhile; speeds and steals are what workers report. `--rates`
(`--tokens` is the same option) adds the rates of the handlers' counters, such as tokens per second.

Keys: `w` one row per worker, `s` sort, `f` failures, `e` steals, `t` rates, `m` memory, `?` all
keys, `q` quit. Where there is no terminal, `watch` prints lines for a log.

Below, four workers embed 687 proteins; the worker of `gpu3` is killed half-way, and the others
finish its work. Both terminals were captured at the same points of the run by `scripts/record.py`,
on a machine without a GPU. With GPUs there are also columns for utilisation, memory, temperature
and power: a column without data is left out, and on a narrow terminal the least important columns
go first.
"""


def main() -> None:
    """Run, watch and write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--rows", type=int, default=24, help="Height of the terminals (default: 24)."
    )
    given = parser.parse_args()
    if shutil.which("tmux") is None:
        sys.exit("error: tmux is not installed. Debian: apt-get install tmux")
    directory = Path(tempfile.mkdtemp(prefix="fsqueue-"))
    pool = directory / "pool"
    plan(directory, pool)
    frames = record(directory, pool, given.rows)
    write(frames)
    shutil.rmtree(directory)


def plan(directory: Path, pool: Path) -> None:
    """Plan the proteins of scripts/data for four GPUs."""
    make = [sys.executable, str(ROOT / "scripts/make_model.py"), str(directory / "model")]
    model = subprocess.run(make, check=True, capture_output=True, text=True).stdout.strip()
    inputs = sorted(str(path) for path in (ROOT / "scripts/data").glob("*.faa*"))
    words = ["plan", "embed", str(pool), *inputs, "--model", model, "--gpus", "4090,3090x2,3080"]
    subprocess.run([*FSQUEUE, *words], check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def record(directory: Path, pool: Path, rows: int) -> dict[int, list[str]]:
    """Return the frames by width: one at each of POINTS, and the last one."""
    terminals = {width: Terminal(directory, pool, width, rows) for width in WIDTHS}
    workers = [start_worker(directory, pool, spool) for spool in SPOOLS]
    killed, deadline = False, time.monotonic() + DEADLINE_S
    try:
        while not all(terminal.over for terminal in terminals.values()):
            if time.monotonic() > deadline:
                sys.exit(f"error: not done after {DEADLINE_S:g} s; see the logs in {directory}")
            progress = min(terminal.look() for terminal in terminals.values())
            if progress >= KILL_AT and not killed:
                workers[-1].kill()
                killed = True
            time.sleep(0.2)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        for terminal in terminals.values():
            terminal.close()
    return {width: terminal.frames for width, terminal in terminals.items()}


def start_worker(directory: Path, pool: Path, spool: str) -> subprocess.Popen[bytes]:
    """Start one worker, with its log beside the pool."""
    with open(directory / f"{spool}.log", "wb") as log:
        words = ["work", str(pool), "--spool", spool]
        return subprocess.Popen([*FSQUEUE, *words], env=ENVIRONMENT, stderr=log)


class Terminal:
    """A private tmux in which `fsqueue watch` runs."""

    def __init__(self, directory: Path, pool: Path, width: int, rows: int) -> None:
        self._tmux = ["tmux", "-S", str(directory / f"tmux-{width}"), "-f", os.devnull]
        watch = f"{sys.executable} -m fsqueue watch {pool} --rates; sleep {DEADLINE_S:g}"
        size = ["-x", str(width), "-y", str(rows)]
        self._run("new-session", "-d", *size, watch)
        self._left = list(POINTS)
        self._done = ""
        self.frames: list[str] = []
        self.over = False

    def look(self) -> float:
        """Keep the frame if it is the first at one of the points; return the progress it shows."""
        shown = self._run("capture-pane", "-p").rstrip() + "\n"
        found = re.search(r"([\d.]+)%  [\d,]+ of [\d,]+ done", shown)
        progress = float(found[1]) if found else 0.0
        self.over = progress == 100.0
        if self._left and progress >= self._left[0] and not self.over:
            self.frames.append(shown)
            self._left = [point for point in self._left if point > progress]
        if self.over and not self._done:
            self._done = shown
            self.frames.append(shown)
        return progress

    def close(self) -> None:
        """End the watcher and its terminal."""
        self._run("kill-server")

    def _run(self, *words: str) -> str:
        run = subprocess.run(
            [*self._tmux, *words], env=ENVIRONMENT, check=True, capture_output=True, text=True
        )
        return run.stdout


def write(frames: dict[int, list[str]]) -> None:
    """Write docs/watching.md."""
    parts = [HEAD]
    for width, shown in frames.items():
        parts.append(f"\n## `fsqueue watch POOL --rates`, {width} columns\n")
        parts += [f"\n```\n{frame}```\n" for frame in shown]
    (ROOT / "docs/watching.md").write_text("".join(parts))


if __name__ == "__main__":
    main()

"""Carry out a test's orders on one host: start processes, signal them, report how they ended.

Orders and answers are one JSON object a line, on stdin and stdout, or on the one connection that is
accepted at a TCP port (`agent.py 7000`). It touches no share itself, so it answers while one hangs.
When the orders end, so does everything it started.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO


class Agent:
    """One host's processes, by their ids there."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, argv: list[str], env: dict[str, str]) -> int:
        """Start a process with its output in a file; return its id."""
        path = self._logs / f"{len(self._children)}.log"
        with open(path, "wb") as out, open(f"{path}.err", "wb") as err:
            child = subprocess.Popen(
                argv,
                env=os.environ | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._children[child.pid] = child
        child.log = path  # type: ignore[attr-defined]
        return child.pid

    def poll(self, pid: int) -> int | None:
        """Return its exit status, None while it runs."""
        return self._children[pid].poll()

    def said(self, pid: int) -> list[str]:
        """Return what it printed on stdout and on stderr."""
        path = self._children[pid].log  # type: ignore[attr-defined]
        return [Path(name).read_text(errors="replace") for name in (path, f"{path}.err")]

    def signal(self, pid: int, number: int) -> None:
        """Signal a process that was started here; what it has started lives on."""
        self._children[pid].send_signal(number)

    def end(self) -> None:
        """Kill whatever still runs of what was started here."""
        for pid in self._children:
            self.signal(pid, signal.SIGKILL)


def obey(agent: Agent, orders: TextIO, answers: TextIO) -> None:
    """Carry out orders until there are no more."""
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        try:
            answer = {"answer": getattr(agent, order["do"])(*order["with"])}
        except (OSError, KeyError) as error:
            answer = {"error": repr(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve stdin, or a TCP port."""
    logs = Path(sys.argv[1])
    logs.mkdir(parents=True, exist_ok=True)
    agent = Agent(logs)
    try:
        if len(sys.argv) > 2:
            with socket.create_server(("0.0.0.0", int(sys.argv[2]))) as server:
                connection, _ = server.accept()
            with connection.makefile("r") as orders, connection.makefile("w") as answers:
                obey(agent, orders, answers)
        else:
            obey(agent, sys.stdin, sys.stdout)
    finally:
        agent.end()


if __name__ == "__main__":
    main()

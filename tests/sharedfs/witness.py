"""Watch a pool's outputs from one host until SIGTERM, then count: `witness.py POOL PLANNED`.

Prints the result of `tests/support/storm.py` as JSON. Lines of a journal that were lost with a host
do not matter: only what is on the disk counts.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict

from fsqueue.pool.settings import open_pool
from tests.support.storm import OutputWatcher, StormResult

LOOK_S = 0.05


def main() -> None:
    """Look until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    witness = OutputWatcher(open_pool(sys.argv[1]), StormResult(planned=int(sys.argv[2])))
    while not stop.wait(LOOK_S):
        witness.look()
    witness.look()
    print(json.dumps(asdict(witness.count()) | {"doubled": witness.tally.doubled}))


if __name__ == "__main__":
    main()

"""One process of a real HyperQueue: `node.py server DIR`, or `node.py worker DIR SERVER CORES`.

The Python package starts the workers of a cluster inside the process of its server. Here each is a
process of its own, as with the program `hq`, so that one of them can be killed: a worker's process
starts a server that is not used, and points its directory at the real one before it adds a worker.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

READY = "ready"


def main(role: str, directory: Path, *rest: str) -> None:
    from hyperqueue.cluster import LocalCluster, WorkerConfig  # late: it may not be installed

    directory.mkdir()
    cluster = LocalCluster(str(directory))
    if role == "worker":
        server, cores = rest
        current = directory / "hq-current"
        current.unlink()
        current.symlink_to(Path(server, "hq-current").resolve())
        cluster.start_worker(WorkerConfig(int(cores)))
    (directory / READY).touch()
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])

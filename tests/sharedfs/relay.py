"""Join stdin and stdout to a TCP connection: `relay.py ADDRESS PORT`.

Waits for the other to listen.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

DEADLINE_S = 60.0


def connect(address: str, port: int) -> socket.socket:
    """Connect as soon as the port is listened on."""
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=1.0)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            connection.settimeout(None)
            return connection


def main() -> None:
    """Relay until either side ends."""
    connection = connect(sys.argv[1], int(sys.argv[2]))

    def back() -> None:
        while data := connection.recv(65536):
            os.write(1, data)
        os._exit(0)

    threading.Thread(target=back, daemon=True).start()
    while data := os.read(0, 65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()

"""Whether workers reach each other: a port that only accepts, and attempts to connect to the others'."""

import selectors
import socket
import threading
import time
from collections.abc import Mapping


class Listener:
    """Accepts whoever connects, and hangs up."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("", 0), backlog=4096)
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, name="reach", daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._socket.accept()[0].close()


def reached(peers: Mapping[str, tuple[str, int]], within_s: float) -> list[str]:
    """Returns the names of the peers to which a connection could be made in time; all are tried at once."""
    found = []
    deadline = time.monotonic() + within_s
    with selectors.DefaultSelector() as selector:
        for name, address in peers.items():
            attempt = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            attempt.setblocking(False)
            attempt.connect_ex(address)
            selector.register(attempt, selectors.EVENT_WRITE, name)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    found.append(str(key.data))
                selector.unregister(key.fileobj)
                key.fileobj.close()
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    return found

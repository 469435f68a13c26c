"""The rendezvous of one generation: a key-value store over HTTP, in the protocol that Horovod's Gloo speaks.

Horovod's own server listens with a backlog of 5 and answers a missing key at once, so n ranks poll about 10 n^2 times
and connections are dropped: 24 s to form 16 ranks on one machine. This one takes 4096 waiting connections, holds a GET
until its key is there (for at most `HOLD_S`, so that an aborted rank is not kept), and forgets everything with its
generation.
"""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# How long a GET waits for its key before it answers 404 (and Horovod asks again 10 ms later).
HOLD_S = 0.05


class RendezvousServer:
    """Serves one generation from a thread of its own until `close`.

    Args:
        host: address to listen on, and the one that is told to the ranks.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._server = _Server((host, 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="rendezvous", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stops listening. Ranks that still ask for keys get an error. Idempotent."""
        self._server.cancel()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    request_queue_size = 4096
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._cancelled = False

    def put(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes | None:
        deadline = time.monotonic() + HOLD_S
        with self._changed:
            while key not in self._values and not self._cancelled:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    break
            return self._values.get(key)

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def handle_error(self, request: object, client_address: object) -> None:
        """A rank that died in the middle of a request is the controller's business, not this server's."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        value = self.server.get(self.path)
        self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        self.server.put(self.path, self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200)

    def do_DELETE(self) -> None:
        # A rank has connected to all others. Keys stay until the generation ends: a slower rank may need them.
        self._answer(200)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: there are n^2 of them."""

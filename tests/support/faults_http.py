"""A real HTTP proxy before the S3 server that refuses, cuts, loses, shortens or holds back, as it is told."""

import enum
import http.client
import select
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_LONGEST_HANG_S = 60.0


class Fault(enum.Enum):
    """What becomes of a request."""

    UNAVAILABLE = "answer 503, without passing it on"
    CONFLICT = "answer 409, without passing it on"
    CUT_BEFORE = "close the connection, without passing it on"
    LOSE_ANSWER = "pass it on, then close the connection without an answer"
    CUT_BODY = "pass it on, answer half of the body, close the connection"
    SHORT_BODY = "pass it on, answer half of the body as if it were all that was asked for"
    CUT_UPLOAD = "pass on half of its body, close both connections"
    HANG = "answer nothing until the client gives up"


@dataclass
class _Planned:
    fault: Fault
    method: str
    part_of_path: str
    times: int


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed reset their connections: that is what these tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FaultyProxy:
    """Passes requests on to ``endpoint``; those that a planned fault matches meet it, first planned first."""

    def __init__(self, endpoint: str) -> None:
        self._lock = threading.Lock()
        self._planned: list[_Planned] = []
        self.met: Counter[Fault] = Counter()
        self.requests: Counter[str] = Counter()
        self.before_request: Callable[[str, str], None] = lambda method, path: None
        target = urlsplit(endpoint)
        assert target.hostname is not None and target.port is not None
        self._handler = _handler(self, target.hostname, target.port)
        self.refusing = True
        self._port = 0
        self.accept()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def fail(self, fault: Fault, *, method: str = "", part_of_path: str = "", times: int = 1) -> None:
        """The next ``times`` requests of this method (any, if empty) to such a path meet ``fault``."""
        with self._lock:
            self._planned.append(_Planned(fault, method, part_of_path, times))

    def heal(self) -> None:
        """Forgets the planned faults."""
        with self._lock:
            self._planned.clear()

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests[method] += 1
            for planned in self._planned:
                if planned.times and planned.method in ("", method) and planned.part_of_path in path:
                    planned.times -= 1
                    self.met[planned.fault] += 1
                    return planned.fault
        return None

    def refuse(self) -> None:
        """Refuses connections from now on, and cuts those that are open at their next request."""
        if not self.refusing:
            self.refusing = True
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def accept(self) -> None:
        """Is there again, at the same port."""
        self._server = _Server(("127.0.0.1", self._port), self._handler)
        self._port = int(self._server.server_address[1])
        self.refusing = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.refuse()


def _handler(proxy: FaultyProxy, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.before_request(self.command, self.path)
            if proxy.refusing:
                self._cut()
                return
            fault = proxy.next_fault(self.command, self.path)
            if fault is Fault.HANG:
                # It is readable when the client closes it.
                select.select([self.connection], [], [], _LONGEST_HANG_S)
            if fault is Fault.CUT_UPLOAD:
                self._pass_on(body, half=True)
            if fault in (Fault.CUT_BEFORE, Fault.CUT_UPLOAD, Fault.HANG):
                self._cut()
                return
            if fault in (Fault.UNAVAILABLE, Fault.CONFLICT):
                status, code = (503, "SlowDown") if fault is Fault.UNAVAILABLE else (409, "ConditionalRequestConflict")
                self._answer(status, [], f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())
                return
            status, headers, content = self._pass_on(body)
            if fault is Fault.LOSE_ANSWER:
                self._cut()
                return
            if fault is Fault.SHORT_BODY and self.command == "GET" and status < 300:
                content = content[: len(content) // 2]
                headers = [header for header in headers if header[0].lower() != "content-length"]
            self._answer(status, headers, content, cut=fault is Fault.CUT_BODY)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

        def _pass_on(self, body: bytes, half: bool = False) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(host, port, timeout=30)
            try:
                # Host stays as the client signed it.
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body[: len(body) // 2] if half else body)
                if half:
                    return 0, [], b""
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                connection.close()

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self._cut()

        def _cut(self) -> None:
            self.wfile.flush()
            self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass  # not to the tests' stderr

    return Handler


@contextmanager
def before(endpoint: str) -> Iterator[FaultyProxy]:
    """Runs a proxy before ``endpoint`` for as long as the block lasts."""
    proxy = FaultyProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()

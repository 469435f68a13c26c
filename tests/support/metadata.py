"""The metadata services of three clouds and a hook, as they speak to the machines that ask: one real HTTP server."""

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_LONGEST_TOKEN_S = 21_600
MACHINE = "worker-0"


@dataclass
class Said:
    """What the services say to one machine."""

    action: dict[str, str] | None = None
    rebalance: dict[str, str] | None = None
    values: dict[str, str] = field(default_factory=lambda: {"preempted": "FALSE", "maintenance-event": "NONE"})
    events: list[dict[str, Any]] = field(default_factory=list)
    hook: str | None = None


class Metadata:
    """Says the same to everybody, but for machines that have an entry of their own in ``own``.

    Attributes:
        tokens: of EC2, that are valid.
        requests: method and path of every request, oldest first.
        broken: a status that every request is answered with, or "cut" or "garbage".
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.said = Said()
        self.own: dict[str, Said] = {}
        self.tokens: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.broken: int | str | None = None
        self._numbers = itertools.count(1)
        self._versions: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._server = _Server((host, 0), _handler(self))
        self.address = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def interrupt(self, at: float, host: str | None = None) -> None:
        """EC2 is going to terminate a machine, or all of them, ``at`` this time."""
        said = self.said if host is None else self.own.setdefault(host, Said())
        said.action = {"action": "terminate", "time": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}

    def set_value(self, name: str, value: str) -> None:
        """Compute Engine's values; who waits for a change hears of it at once."""
        with self._changed:
            self.said.values[name] = value
            self._versions[name] = self._versions.get(name, 0) + 1
            self._changed.notify_all()

    def schedule(self, kind: str, at: float | None, machine: str = MACHINE, event: str = "e-1") -> None:
        """Azure schedules an event, or has started it (``at`` is None)."""
        self.said.events.append(
            {
                "EventId": event,
                "EventType": kind,
                "ResourceType": "VirtualMachine",
                "Resources": [machine],
                "EventStatus": "Started" if at is None else "Scheduled",
                "NotBefore": "" if at is None else format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True),
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            }
        )

    def close(self) -> None:
        """Ends every wait, and refuses connections from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(self) -> str:
        self.tokens.add(made := f"token-{next(self._numbers)}")
        return made

    def value(self, said: Said, name: str, query: dict[str, list[str]]) -> tuple[str, str]:
        """A value and its ETag, after the wait that was asked for."""
        with self._changed:
            if query.get("wait_for_change") == ["true"]:
                seen = query.get("last_etag", [self._etag(name)])[0]
                timeout_s = float(query["timeout_sec"][0]) if "timeout_sec" in query else None
                self._changed.wait_for(lambda: self._closed or self._etag(name) != seen, timeout_s)
            return said.values[name], self._etag(name)

    def _etag(self, name: str) -> str:
        return f"{name}-{self._versions.get(name, 0)}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _handler(metadata: Metadata) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            metadata.requests.append((self.command, self.path))
            if metadata.broken == "cut":
                self.close_connection = True
            elif metadata.broken == "garbage":
                self._answer(200, "<html>sign in to the hotel's network</html>")
            elif isinstance(metadata.broken, int):
                self._answer(metadata.broken, "injected")
            else:
                self._serve()

        do_GET = do_PUT = do_POST = _handle

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            said = metadata.own.get(self.client_address[0], metadata.said)
            query = parse_qs(parts.query)
            if parts.path.startswith("/latest/"):
                self._ec2(parts.path, said)
            elif parts.path.startswith("/computeMetadata/v1/instance/"):
                self._compute_engine(parts.path.removeprefix("/computeMetadata/v1/instance/"), query, said)
            elif parts.path.startswith("/metadata/"):
                self._azure(parts.path, query, said)
            elif parts.path.startswith("/hook") and said.hook is not None:
                self._answer(200, said.hook)
            else:
                self._answer(404, "Not Found")

        def _ec2(self, path: str, said: Said) -> None:
            if path == "/latest/api/token":
                lives = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if self.command != "PUT":
                    self._answer(405, "Method Not Allowed")
                elif "X-Forwarded-For" in self.headers:
                    self._answer(403, "Forbidden")
                elif not lives.isdigit() or not 1 <= int(lives) <= _LONGEST_TOKEN_S:
                    self._answer(400, "Bad Request")
                else:
                    self._answer(200, metadata.token())
                return
            if self.headers.get("X-aws-ec2-metadata-token") not in metadata.tokens:
                self._answer(401, "Unauthorized")
                return
            found = {
                "/latest/meta-data/spot/instance-action": said.action,
                "/latest/meta-data/events/recommendations/rebalance": said.rebalance,
            }.get(path)
            self._answer(404, "Not Found") if found is None else self._answer(200, json.dumps(found))

        def _compute_engine(self, name: str, query: dict[str, list[str]], said: Said) -> None:
            if self.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in self.headers:
                self._answer(403, "Forbidden")
            elif name not in said.values:
                self._answer(404, "Not Found")
            else:
                value, etag = metadata.value(said, name, query)
                self._answer(200, value, {"Metadata-Flavor": "Google", "ETag": etag})

        def _azure(self, path: str, query: dict[str, list[str]], said: Said) -> None:
            if self.headers.get("Metadata") != "true" or "api-version" not in query or self.command != "GET":
                self._answer(400, '{"error": "Bad request"}')
            elif path == "/metadata/instance/compute/name" and query.get("format") == ["text"]:
                self._answer(200, MACHINE)
            elif path == "/metadata/scheduledevents":
                self._answer(200, json.dumps({"DocumentIncarnation": 1, "Events": said.events}))
            else:
                self._answer(404, '{"error": "Not found"}')

        def _answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
            body = text.encode()
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass  # not to the tests' stderr

    return Handler


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Metadata]:
    """Runs the services for as long as the block lasts."""
    metadata = Metadata(host)
    try:
        yield metadata
    finally:
        metadata.close()

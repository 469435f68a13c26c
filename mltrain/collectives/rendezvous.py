"""The rendezvous of one generation: where its ranks tell each other which addresses to connect to, over HTTP.

Horovod needs one request a rank: ``POST /<scope>/<rank>/<size>`` brings one part for each rank, all of one length and
in rank order, and is answered, once all ranks have come, with what each of them brought for this one (patch 0008 of
cluster/horovod). ``POST /<scope>/<rank>/<size>/all`` brings one part for everybody, and is answered with what each of
them brought, one after the other: `exchange`. Beside that there are keys: PUT, and a GET that waits for its key, though
for `HOLD_S` at most.
"""

import asyncio
import contextlib
import http.client
import io
import multiprocessing.connection
import socket
import threading
from dataclasses import dataclass, field

from mltrain.errors import CollectiveAborted

# The build of Horovod that asks so (cluster/horovod/build.sh).
HOROVOD_BUILD = "0.28.1+mltrain2"
# How long a GET waits for its key before it answers 404, and is asked again.
HOLD_S = 0.05
# All ranks of a generation come at once.
_BACKLOG = 4096
_HEAD_BYTES, _BODY_BYTES = 1 << 16, 64 << 20
# How long a rank waits to be connected with: the server is the controller's, and answers, or the worker is lost anyway.
_CONNECT_S = 10.0
# How often a rank that waits for an answer looks whether it was aborted.
_LOOK_S = 0.05


class RendezvousServer:
    """Serves one generation from a thread of its own until `close`, and forgets everything with it.

    Args:
        host: address to listen on, and the one that is told to the ranks.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        listener = socket.create_server((host, 0), backlog=_BACKLOG)
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._keys: dict[str, asyncio.Future[bytes]] = {}
        self._requests: dict[asyncio.Task[None], socket.socket] = {}
        self._closed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="rendezvous", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening. Ranks that wait for others, or still come, get an error at once. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closed.set)
            self._thread.join()

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, listener:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept, listener)
        await self._closed.wait()
        self._loop.remove_reader(listener)
        # Connections end with the requests.
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        # Who has gone again is no loss.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            request = self._loop.create_task(self._handle(connection))
            self._requests[request] = connection
            request.add_done_callback(lambda ended: self._requests.pop(ended).close())

    async def _handle(self, connection: socket.socket) -> None:
        # A rank that died in the middle of a request is the controller's business.
        with contextlib.suppress(ConnectionError):
            try:
                status, body = await self._answer(*await _request(connection))
            except ValueError as error:
                status, body = "400 Bad Request", str(error).encode()
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            await self._loop.sock_sendall(connection, head.encode() + body)

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[str, bytes]:
        if method == "POST":
            scope, rank, size, *every = path.strip("/").split("/")
            return "200 OK", await self._exchange(scope, int(rank), int(size), body, everybody=every == ["all"])
        key = self._keys.setdefault(path, self._loop.create_future())
        if method == "PUT":
            if key.done():
                key = self._keys[path] = self._loop.create_future()
            key.set_result(body)
            return "200 OK", b""
        if method == "GET":
            await asyncio.wait([key], timeout=HOLD_S)
            return ("200 OK", key.result()) if key.done() else ("404 Not Found", b"")
        raise ValueError(f"{method} is not known here")

    async def _exchange(self, scope: str, rank: int, size: int, brought: bytes, *, everybody: bool) -> bytes:
        if not 0 <= rank < size or (len(brought) % size and not everybody):
            raise ValueError(f"rank {rank} of {size} cannot bring {len(brought)} bytes")
        exchange = self._rounds.setdefault((scope, size), _Round())
        exchange.parts[rank] = brought
        if len(exchange.parts) == size:
            exchange.complete.set()
        await exchange.complete.wait()
        length = len(brought) // size
        mine = slice(None) if everybody else slice(rank * length, (rank + 1) * length)
        return b"".join(exchange.parts[peer][mine] for peer in range(size))


@dataclass
class _Round:
    parts: dict[int, bytes] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)


async def _request(connection: socket.socket) -> tuple[str, str, bytes]:
    """Method, path and body of a request."""
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > _HEAD_BYTES:
            raise ValueError("a request without an end")
        received += await _receive(connection)
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= _BODY_BYTES:
        raise ValueError(f"a request of {length} bytes")
    body = received[end + 4 :]
    while len(body) < length:
        body += await _receive(connection)
    return method, path, bytes(body[:length])


async def _receive(connection: socket.socket) -> bytes:
    received = await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
    if not received:
        raise ConnectionError("the peer has gone")
    return received


def exchange(address: str, scope: str, rank: int, size: int, part: bytes, aborted: threading.Event) -> list[bytes]:
    """Brings ``part``, waits until all ranks have come, and returns what each of them brought, in rank order.

    Raises:
        CollectiveAborted: ``aborted`` was set meanwhile.
        OSError: the server is closed, or does not answer.
    """
    answer = ask(address, "POST", f"/{scope}/{rank}/{size}/all", len(part).to_bytes(4) + part, aborted)
    if answer is None:
        raise ConnectionError(f"the rendezvous refuses rank {rank} of {size}")
    stream = io.BytesIO(answer)
    return [stream.read(int.from_bytes(stream.read(4))) for _ in range(size)]


def ask(address: str, method: str, path: str, body: bytes, aborted: threading.Event) -> bytes | None:
    """One request to a rendezvous server. Returns the answer; None if there is no such thing.

    Raises:
        CollectiveAborted: ``aborted`` was set meanwhile.
        OSError: the server is closed, or does not answer.
    """
    with contextlib.closing(http.client.HTTPConnection(address, timeout=_CONNECT_S)) as connection:
        connection.request(method, path, body)
        answered = False
        while not answered:
            if aborted.is_set():
                raise CollectiveAborted("aborted during rendezvous")
            answered = bool(multiprocessing.connection.wait([connection.sock], _LOOK_S))
        answer = connection.getresponse()
        data = answer.read()
        return data if answer.status == 200 else None

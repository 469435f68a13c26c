"""Lines of JSON between controller and workers, over one TCP connection per worker that is theirs alone.

Ray needs a minute to call a cut node dead. Here every worker sends a sign of life from a thread of its own, which
neither a long step nor a blocked collective holds up, and hears the controller's answer.
"""

import json
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mltrain.storage.parsing import parse_object

Message = dict[str, Any]
_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True)
class Received:
    """Something that happened on a worker's connection: a message, or (None) its end."""

    worker: str
    message: Message | None


class Hub:
    """The controller's end of all connections.

    Args:
        host: address to listen on.
        secret: a worker that does not know it is refused.
        inbox: where `Received` goes, but for heartbeats.
    """

    def __init__(self, host: str, secret: str, inbox: "queue.SimpleQueue[Any]") -> None:
        self._secret = secret
        self._inbox = inbox
        self._listener = socket.create_server((host, 0), backlog=4096)
        self._listener.setblocking(False)
        self.address = (host, int(self._listener.getsockname()[1]))
        self._connections: dict[str, _Connection] = {}
        self._heard: dict[str, float] = {}
        self._beats: dict[str, tuple[float, Message]] = {}
        self._forgotten: set[str] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="hub", daemon=True)
        self._thread.start()

    def heard(self, worker: str) -> float | None:
        """When (monotonic) a worker was last heard of; None if never."""
        return self._heard.get(worker)

    def beat(self, worker: str) -> tuple[float, Message] | None:
        """When (monotonic) a worker's latest heartbeat came, and what it said."""
        return self._beats.get(worker)

    def send(self, worker: str, message: Message) -> None:
        """Sends a command; to a worker whose connection is gone, nothing happens: its end is in the inbox."""
        connection = self._connections.get(worker)
        if connection is not None:
            connection.send(message)

    def forget(self, worker: str) -> None:
        """Ends a worker's connection, now or when it comes back: nothing it says is taken any more, and it exits."""
        self._forgotten.add(worker)
        connection = self._connections.get(worker)
        if connection is not None:
            connection.end()

    def close(self) -> None:
        """Ends all connections: workers that still live exit."""
        self._closed = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(timeout=0.1):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(accepted, selectors.EVENT_READ, _Connection(accepted))

    def _read(self, connection: "_Connection") -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            taken = bool(data) and all(self._take(connection, message) for message in connection.lines(data))
        except (ValueError, KeyError, TypeError):
            # Not a worker: whoever finds the port may write to it.
            taken = False
        if not taken:
            self._end(connection)

    def _take(self, connection: "_Connection", message: Message) -> bool:
        """Takes a message. False: from somebody that is not to be heard."""
        if connection.worker is None:
            worker = str(message["worker"])
            if message.get("secret") != self._secret or worker in self._forgotten:
                return False
            connection.worker = worker
            self._connections[worker] = connection
        elif connection.worker in self._forgotten:
            return False
        self._heard[connection.worker] = time.monotonic()
        if message["type"] == "heartbeat":
            self._beats[connection.worker] = (time.monotonic(), message)
            connection.send({"type": "ack"})
        else:
            self._inbox.put(Received(connection.worker, message))
        return True

    def _end(self, connection: "_Connection") -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.worker is not None and self._connections.get(connection.worker) is connection:
            del self._connections[connection.worker]
            self._inbox.put(Received(connection.worker, None))


class _Connection:
    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.worker: str | None = None
        self._partial = b""
        self._lock = threading.Lock()

    def lines(self, data: bytes) -> list[Message]:
        *whole, self._partial = (self._partial + data).split(b"\n")
        return [parse_object(line) for line in whole]

    def send(self, message: Message) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            try:
                if self.socket.send(data) != len(data):
                    raise BlockingIOError("the peer does not read")
            except OSError:
                # Dead, or as good as dead: it has not read its commands for long.
                self.end()

    def end(self) -> None:
        """Ends it; the reading thread sees that."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster


class Link:
    """A worker's end.

    Args:
        address: of the hub.
        hello: first message; ``worker`` and ``secret``.
        interval_s: between two heartbeats.
        silence_s: after so long without an answer the controller is lost.
        on_command: called in a thread of its own for every command.
        on_beat: called before every heartbeat; what it returns goes with it.
        on_lost: called once when the connection has ended or the controller is silent.
    """

    def __init__(
        self,
        address: tuple[str, int],
        hello: Message,
        *,
        interval_s: float,
        silence_s: float,
        on_command: Callable[[Message], None],
        on_beat: Callable[[], Message],
        on_lost: Callable[[str], None],
    ) -> None:
        self._socket = socket.create_connection(address, timeout=silence_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        self._interval_s = interval_s
        self._silence_s = silence_s
        self._on_command = on_command
        self._on_beat = on_beat
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self.send({"type": "hello", **hello})
        for target, name in ((self._read, "commands"), (self._beat, "heartbeat"), (self._watch, "silence")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def send(self, message: Message) -> None:
        """Sends a message; if the connection is gone, ``on_lost`` hears of it."""
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError as error:
            self._lost(f"the connection to the controller broke: {error}")

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines:
            try:
                for line in lines:
                    self._heard = time.monotonic()
                    message = parse_object(line)
                    if message["type"] != "ack":
                        self._on_command(message)
            except (OSError, ValueError) as error:
                self._lost(f"the connection to the controller broke: {error}")
        self._lost("the controller closed the connection")

    def _beat(self) -> None:
        while not self._closed.wait(self._interval_s):
            self.send({"type": "heartbeat", **self._on_beat()})

    def _watch(self) -> None:
        """Apart from who sends: over a cut link that waits, once more is on its way than the kernel keeps."""
        while not self._closed.wait(self._interval_s):
            silent_s = time.monotonic() - self._heard
            if silent_s > self._silence_s:
                self._lost(f"nothing was heard of the controller for {silent_s:.1f} s")

    def _lost(self, why: str) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._on_lost(why)

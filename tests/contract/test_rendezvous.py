"""The rendezvous server, asked as ranks ask it, and as strangers might."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mltrain.collectives import RendezvousServer
from mltrain.collectives.rendezvous import exchange
from mltrain.errors import CollectiveAborted
from tests.support.processes import wait_until


@pytest.fixture
def server() -> Iterator[RendezvousServer]:
    made = RendezvousServer()
    yield made
    made.close()


def _ask(server: RendezvousServer, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection(server.address, timeout=30)) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def _send(server: RendezvousServer, request: bytes) -> bytes:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            return answer.read()


def test_every_rank_hears_what_each_has_for_it_once_all_have_come(server: RendezvousServer) -> None:
    size = 40

    def ask(rank: int) -> tuple[int, bytes]:
        return _ask(server, "POST", f"/all/{rank}/{size}", b"".join(b"%02d>%02d " % (rank, p) for p in range(size)))

    with ThreadPoolExecutor(size) as ranks:
        answers = list(ranks.map(ask, range(size)))
    assert answers == [(200, b"".join(b"%02d>%02d " % (p, rank) for p in range(size))) for rank in range(size)]


def test_what_a_rank_brings_for_everybody_may_have_any_length(server: RendezvousServer) -> None:
    brought = [b"", b"1", b"\n" * 300]

    def bring(rank: int) -> list[bytes]:
        return exchange(server.address, "all", rank, len(brought), brought[rank], threading.Event())

    with ThreadPoolExecutor(len(brought)) as ranks:
        assert list(ranks.map(bring, range(len(brought)))) == [brought] * len(brought)


def test_an_abort_ends_the_wait_for_others(server: RendezvousServer) -> None:
    aborted = threading.Event()
    with ThreadPoolExecutor(1) as rank:
        waiting = rank.submit(exchange, server.address, "all", 0, 2, b"", aborted)
        wait_until(lambda: server._rounds, 30, "first rank")
        aborted.set()
        with pytest.raises(CollectiveAborted):
            waiting.result()


def test_closing_ends_the_wait_for_others(server: RendezvousServer) -> None:
    with ThreadPoolExecutor(1) as rank:
        waiting = rank.submit(_ask, server, "POST", "/all/0/2", b"ab")
        server.close()
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            waiting.result()
    server.close()


def test_a_key_is_what_was_last_put_and_404_before(server: RendezvousServer) -> None:
    assert _ask(server, "GET", "/scope/key")[0] == 404
    for value in (b"1", b"2"):
        assert _ask(server, "PUT", "/scope/key", value)[0] == 200
        assert _ask(server, "GET", "/scope/key") == (200, value)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /all/2/2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /all/0/0 HTTP/1.1\r\n\r\n",
        b"POST /all/0/2 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /all/2/2/all HTTP/1.1\r\n\r\n",
        b"POST /all/x HTTP/1.1\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\n\r\n",
        b"PUT /key HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"{}\r\n\r\n",
        b"\xff" * 200_000,
    ],
    ids=["rank", "size", "parts", "rank for all", "path", "method", "length", "stranger", "no end"],
)
def test_what_no_rank_would_ask_is_refused_and_harms_nobody(server: RendezvousServer, request_bytes: bytes) -> None:
    try:
        assert _send(server, request_bytes).startswith(b"HTTP/1.1 400 ")
    except ConnectionError:
        pass  # refused before all of it was sent
    assert _ask(server, "PUT", "/key", b"x")[0] == 200

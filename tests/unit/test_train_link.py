"""The connection between controller and workers: who is heard, and who is not."""

import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mltrain.train.control import Wishes
from mltrain.train.link import Hub, Link, Received
from mltrain.train.worker import Asked
from tests.support.processes import wait_until


@pytest.fixture
def inbox() -> "queue.SimpleQueue[Any]":
    return queue.SimpleQueue()


@pytest.fixture
def hub(inbox: "queue.SimpleQueue[Any]") -> Iterator[Hub]:
    hub = Hub("127.0.0.1", "secret", inbox)
    yield hub
    hub.close()


class Worker:
    """A worker's end, and what it hears."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.lost = threading.Event()
        self.link = Link(
            hub.address,
            {"worker": name, "secret": "secret"},
            interval_s=0.02,
            silence_s=30.0,
            on_command=self.commands.put,
            on_beat=dict,
            on_lost=lambda why: self.lost.set(),
        )


def test_messages_arrive_in_order_and_commands_reach_their_worker(hub: Hub, inbox: "queue.SimpleQueue[Any]") -> None:
    worker = Worker(hub, "a")
    for number in range(3):
        worker.link.send({"type": "row", "number": number})
    heard = [inbox.get(timeout=10) for _ in range(4)]
    assert [received.message["type"] for received in heard] == ["hello", "row", "row", "row"]
    assert [received.message["number"] for received in heard[1:]] == [0, 1, 2]
    hub.send("a", {"type": "stop"})
    assert worker.commands.get(timeout=10) == {"type": "stop"}


def test_a_forgotten_worker_is_cut_off_now_and_when_it_comes_back(hub: Hub, inbox: "queue.SimpleQueue[Any]") -> None:
    worker = Worker(hub, "a")
    assert inbox.get(timeout=10).message["type"] == "hello"
    hub.forget("a")
    assert worker.lost.wait(10)
    assert inbox.get(timeout=10) == Received("a", None)
    again = Worker(hub, "a")
    assert again.lost.wait(10) and inbox.empty()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"7\n",
        b"[" * 60_000 + b"\n",
        json.dumps({"worker": "x"}).encode() + b"\n",
        json.dumps({"secret": "secret"}).encode() + b"\n",
        json.dumps({"secret": "wrong", "worker": "x", "type": "hello"}).encode() + b"\n",
    ],
    ids=["http", "binary", "list", "number", "deep", "no secret", "no worker", "wrong secret"],
)
def test_a_stranger_on_the_port_disturbs_nobody(hub: Hub, inbox: "queue.SimpleQueue[Any]", words: bytes) -> None:
    worker = Worker(hub, "a")
    inbox.get(timeout=10)
    with socket.create_connection(hub.address, timeout=10) as stranger:
        stranger.sendall(words)
        assert stranger.recv(100) == b""
    before = hub.heard("a")
    wait_until(lambda: hub.heard("a") != before, 10, "heartbeat")
    worker.link.send({"type": "row"})
    assert inbox.get(timeout=10).message == {"type": "row"}


def test_a_worker_whose_words_no_longer_get_through_still_notices_that_nobody_answers() -> None:
    lost = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(
            ("127.0.0.1", silent.getsockname()[1]),
            {"worker": "a", "secret": "secret"},
            interval_s=0.02,
            silence_s=0.5,
            on_command=lambda message: None,
            # More than the kernel keeps of what is on its way: whoever sends it waits.
            on_beat=lambda: {"rows": "0" * (64 << 20)},
            on_lost=lambda why: lost.set(),
        )
        assert lost.wait(20)
        link._socket.shutdown(socket.SHUT_RDWR)


def test_what_is_asked_of_a_generation_that_a_rank_has_not_begun_is_kept_for_it() -> None:
    asked = Asked()
    asked.take(1, stop=False, checkpoint=True)
    asked.take(2, stop=True, checkpoint=False)
    assert asked.wishes(1) == Wishes()
    assert asked.wishes(2) == Wishes(stop=True)
    asked.take(1, stop=True, checkpoint=True)
    asked.take(2, stop=False, checkpoint=True)
    assert asked.wishes(2) == Wishes(stop=True, checkpoint=True)
    assert asked.wishes(2) == Wishes(stop=True), "a checkpoint is made once"
    assert asked.wishes(3) == Wishes()

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
from mltrain.train.worker import Contact, RemoteControl
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


def test_a_stop_that_comes_before_its_generation_has_begun_is_kept_for_it(
    hub: Hub, inbox: "queue.SimpleQueue[Any]"
) -> None:
    control = RemoteControl("a", Contact(hub.address, "secret", "run", 1, 0.02, 30.0))
    assert inbox.get(timeout=10).message["type"] == "hello"

    def command(kind: str, generation: int, **more: Any) -> None:
        hub.send("a", {"type": kind, "driver_epoch": 1, "generation": generation, **more})

    control.begin(1, 0)
    command("checkpoint", 1)
    command("stop", 2, checkpoint=False)
    command("decided", 1, step=5)
    control.wait_decided(5)
    assert control.wishes() == Wishes()
    control.begin(2, 5)
    assert control.wishes() == Wishes(stop=True)
    command("stop", 1, checkpoint=True)
    command("checkpoint", 2)
    command("decided", 2, step=6)
    control.wait_decided(6)
    assert control.wishes() == Wishes(stop=True, checkpoint=True)
    assert control.wishes() == Wishes(stop=True)
    control.begin(3, 6)
    assert control.wishes() == Wishes()

"""The agent of a node, with real sources; what it would tell Ray is taken down here."""

import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mltrain.spot import LEAD_S, Agent, DrainError, Source
from mltrain.spot import agent as agents
from mltrain.spot.aws import Aws
from mltrain.spot.hooks import File
from tests.support.metadata import Metadata, serving

_WAIT_S = 30.0


class Node:
    """What happens to a node: drains that were asked for, and what its agent told."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.drains: list[tuple[str, float | None]] = []
        self.refusals = 0
        self._told: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._agents: list[Agent] = []

    def listen(self, *sources: Source) -> Agent:
        self._agents.append(Agent(sources, self._drain, lambda kind, fields: self._told.put((kind, fields)), self.key))
        return self._agents[-1]

    def next(self) -> tuple[str, dict[str, Any]]:
        return self._told.get(timeout=_WAIT_S)

    def quiet(self) -> bool:
        return self._told.empty()

    def close(self) -> None:
        for agent in self._agents:
            agent.close()

    def _drain(self, reason: str, deadline: float | None) -> None:
        if self.refusals:
            self.refusals -= 1
            raise DrainError("the head is away")
        self.drains.append((reason, deadline))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for name, every_s in (("_TURN_S", 0.05), ("_DRAIN_AGAIN_S", 0.05)):
        monkeypatch.setattr(agents, name, every_s)
    monkeypatch.setattr(Aws, "every_s", 0.05)
    monkeypatch.setattr(File, "every_s", 0.05)
    made = Node(str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with serving() as made:
        yield made


def test_an_interruption_drains_the_node_once(node: Node, metadata: Metadata) -> None:
    node.listen(Aws(metadata.address))
    at = int(time.time() + LEAD_S) - 10
    metadata.interrupt(at)
    kind, fields = node.next()
    assert (kind, fields["action"], fields["deadline"]) == ("notice", "drain", at)
    assert node.next()[0] == "node drained"
    assert [deadline for _, deadline in node.drains] == [at] and "terminate" in node.drains[0][0]
    metadata.said.rebalance = {"noticeTime": "2026-11-23T08:22:00Z"}
    assert node.next()[1]["action"] == "stay"
    metadata.said.action = None
    kind, fields = node.next()
    assert kind == "notice cancelled" and fields["drained"]
    assert len(node.drains) == 1


def test_a_notice_that_is_cancelled_in_time_costs_nothing(node: Node, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    node.listen(File(str(notice)))
    notice.write_text(f'{{"deadline_s": {LEAD_S + 600}}}')
    assert node.next()[1]["action"] == "wait"
    notice.unlink()
    kind, fields = node.next()
    assert kind == "notice cancelled" and not fields["drained"] and not node.drains


def test_a_node_that_goes_away_later_is_drained_when_that_is_near_though_nothing_is_heard(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(File, "every_s", 600.0)
    notice = tmp_path / "notice"
    notice.write_text(f'{{"deadline_s": {LEAD_S + 3}}}')
    node.listen(File(str(notice)))
    assert node.next()[1]["action"] == "wait"
    assert node.next()[0] == "node drained"


def test_a_source_that_is_away_is_named_once_and_asked_again(node: Node, metadata: Metadata, tmp_path: Path) -> None:
    metadata.broken = 503
    notice = tmp_path / "notice"
    node.listen(Aws(metadata.address), File(str(notice)))
    kind, fields = node.next()
    assert (kind, fields["source"]) == ("notices unavailable", "aws") and "HTTP 503" in fields["reason"]
    metadata.interrupt(time.time() + LEAD_S - 10)
    metadata.broken = None
    assert node.next()[0] == "notice"
    assert node.next()[0] == "node drained"
    metadata.broken = 503
    asked = len(metadata.requests)
    while len(metadata.requests) < asked + 3:
        time.sleep(0.01)
    assert node.quiet()
    # The others are heard all the while; a notice stands for as long as nobody says otherwise.
    notice.write_text("soon")
    assert node.next()[1]["source"] == "file"


def test_a_drain_that_is_refused_is_asked_for_again(node: Node, tmp_path: Path) -> None:
    node.refusals = 3
    (tmp_path / "notice").write_text("soon")
    node.listen(File(str(tmp_path / "notice")))
    assert [node.next()[0] for _ in range(3)] == ["notice", "drain refused", "node drained"]
    assert len(node.drains) == 1


def test_one_agent_listens_and_another_takes_over_from_a_killed_one(node: Node, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    code = (
        "import sys, time; from mltrain.spot import Agent; from mltrain.spot.hooks import File; "
        "File.every_s = 0.05; tell = lambda kind, fields: print(kind, flush=True); "
        "agent = Agent([File(sys.argv[1])], lambda reason, deadline: None, tell, sys.argv[2]); time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, notice, node.key], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        notice.write_text("soon")
        assert first.stdout.readline() == "notice\n"
        node.listen(File(str(notice)))
        time.sleep(0.3)
        assert node.quiet()
    finally:
        first.kill()
        first.wait()
    assert node.next()[0] == "notice"

"""A run as its controller keeps it."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mltrain.results import RunLog
from mltrain.results.loggers import Loggers
from mltrain.storage import open_store
from mltrain.train.lease import Lease
from mltrain.train.record import Identity, RunRecord
from mltrain.train.totals import Totals
from tests.support.training import experiment, parse


class Heard:
    """What a run tells its hooks."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def on_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.events.append((kind, fields))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def record(tmp_path: Path, heard: Heard) -> Iterator[RunRecord]:
    """Of a run that makes a checkpoint a minute."""
    root = open_store(tmp_path)
    run = root.sub("runs/r")
    config = parse(experiment(tmp_path, checkpoint={"every": {"seconds": 60}}))
    lease = Lease.acquire(run, "r")
    try:
        with RunLog(root, "r") as log, Loggers([], root, "r") as loggers:
            identity = Identity("r", "config", "dataset", None)
            yield RunRecord(config, identity, run, log, loggers, lease, None, None, [heard], Totals())
    finally:
        lease.release()


def test_a_checkpoint_is_due_however_often_nodes_come_and_go(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, due = time.monotonic(), []
    for generation in range(1, 6):
        monkeypatch.setattr(time, "monotonic", lambda now=began + 20.0 * generation: now)
        record.begin_generation(generation, ["a"], "somebody came")
        due.append(record.checkpoint_due())
    monkeypatch.undo()
    assert due == [False, False, False, False, True]


def test_a_checkpoint_that_takes_longer_than_the_interval_puts_the_next_one_off_and_that_is_said_once(
    record: RunRecord, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()

    def due(at_s: float) -> bool:
        monkeypatch.setattr(time, "monotonic", lambda: began + at_s)
        return record.checkpoint_due()

    monkeypatch.setattr(time, "monotonic", lambda: began)
    record.begin_generation(1, ["a"], "somebody came")
    assert [due(at_s) for at_s in (59, 61)] == [False, True]
    record.handle({"type": "saving", "step": 5})
    # The one before is older than a minute, but this one is not.
    assert not due(62) and not due(120)
    assert [kind for kind, _ in heard.events] == ["generation formed"]
    assert not due(122) and not due(123)
    monkeypatch.undo()
    assert heard.events[1:] == [("checkpoint delayed", {"waiting_for": 5, "since_s": pytest.approx(61)})]

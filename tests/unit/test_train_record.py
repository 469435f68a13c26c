"""A run as its controller keeps it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.results import RunLog
from mltrain.results.loggers import Loggers
from mltrain.storage import open_store
from mltrain.train.lease import Lease
from mltrain.train.record import Identity, RunRecord
from mltrain.train.totals import Totals
from tests.support.training import experiment, parse


@pytest.fixture
def record(tmp_path: Path) -> Iterator[RunRecord]:
    """Of a run that makes a checkpoint a minute."""
    root = open_store(tmp_path)
    run = root.sub("runs/r")
    config = parse(experiment(tmp_path, checkpoint={"every": {"seconds": 60}}))
    lease = Lease.acquire(run, "r")
    try:
        with RunLog(root, "r") as log, Loggers([], root, "r") as loggers:
            identity = Identity("r", "config", "dataset", None)
            yield RunRecord(config, identity, run, log, loggers, lease, None, None, [], Totals())
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

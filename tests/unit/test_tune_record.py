"""A sweep's record in storage."""

from pathlib import Path

import pytest

from mltrain import config as configs
from mltrain import results
from mltrain.errors import DamagedError
from mltrain.storage import open_store
from mltrain.tune import record
from mltrain.tune.space import Point, trial_config
from tests.unit.test_tune_space import experiment

POINT = Point("sweep-000", {"train.optimizer.lr": 0.5})


def test_a_trial_that_could_not_record_its_failure_has_ended_with_its_own_config_and_error(tmp_path: Path) -> None:
    root = open_store(str(tmp_path))
    assert not record.trial_of(root, POINT).ended
    record.failed(root, experiment(), POINT, "sweep", "ValueError: why")
    trial = record.trial_of(root, POINT)
    assert (trial.status, trial.error, trial.ended) == ("failed", "ValueError: why", True)
    row = results.get(str(tmp_path), "sweep-000")
    assert (row["sweep_id"], row["kind"], row["error"]) == ("sweep", "trial", "ValueError: why")
    assert row["config_digest"] == configs.digest(trial_config(experiment(), POINT.parameters))


def test_a_sweep_keeps_the_trials_that_it_began_with(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert record.keep_points(store, [POINT]) == [POINT]
    assert record.keep_points(store, [Point("sweep-000", {})]) == [POINT]
    for damaged in (b"[{]", b"[" * 100_000, b"[1]"):
        store.put(record.TRIALS, damaged)
        with pytest.raises(DamagedError, match=r"trials\.json"):
            record.keep_points(store, [POINT])

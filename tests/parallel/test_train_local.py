"""Runs whose Ray is their own: a signal to the whole group, and one while Ray starts."""

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from mltrain import train, tune
from mltrain.errors import RequestError
from mltrain.results import read_events
from mltrain.storage import open_store
from mltrain.train.checkpoints import stored
from tests.support.datasets import make_dataset
from tests.support.processes import wait_until
from tests.support.sweeps import sweep
from tests.support.training import experiment, faulty, parse, start


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make_dataset(directory, rows=2000, shards=2)
    return directory


def happened(root: Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(open_store(root), run_id) if event["event"] == kind]


def test_a_signal_to_the_whole_group_makes_a_checkpoint_and_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root, workers=1), tmp_path, what="slow alone")
    with start(mapping, "group", tmp_path / "logs") as process:
        wait_until(lambda: happened(root, "group", "checkpoint") or not process.running(), 240, "first checkpoint")
        below = process.children()
        process.send_group(signal.SIGTERM)
        process.wait_for_output("SIGTERM: stopping in good order; a second signal ends at once.", 10)
        ended = process.wait(120)
        assert below and not psutil.wait_procs(below, timeout=30)[1]
    assert ended.exit_code == 75, ended.stderr
    stopped = train.load(str(root), "group")
    assert stopped.status == "stopped" and stopped.losses_survived == 0
    first = happened(root, "group", "checkpoint")[0]["step"]
    assert stored(open_store(root).sub("runs/group"))[-1].step == stopped.step > first
    mapping["train"]["workers"] = 0
    assert train.run(parse(mapping), run_id="group").status == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_ends_the_start(root: Path, tmp_path: Path, number: signal.Signals) -> None:
    run_id = f"starting-{number.name.lower()}"
    with start(experiment(root, workers=1), run_id, tmp_path / "logs") as process:
        gcs = wait_until(lambda: [child for child in process.children() if "gcs" in _name(child)], 120, "start of Ray")
        process.send_group(number)
        process.wait_for_output(f"{number.name}: stopping in good order", 20)
        ended = process.wait(60)
        assert not psutil.wait_procs(gcs, timeout=10)[1]
    assert ended.exit_code == 75, ended.stderr
    assert f"Run {run_id} stopped after step 0 ({number.name}), without a checkpoint." in ended.stderr
    assert train.load(str(root), run_id).status == "stopped"


def test_a_killed_driver_takes_its_ray_with_it(root: Path, tmp_path: Path) -> None:
    with start(experiment(root, workers=1), "killed", tmp_path / "logs") as process:
        wait_until(lambda: happened(root, "killed", "worker started") or not process.running(), 240, "worker")
        # Ray's agents end in their own time, once they have failed to tell the others that their node has gone.
        below = [child for child in process.children() if "Agent" not in _name(child)]
        process.send(signal.SIGKILL)
        assert below and not psutil.wait_procs(below, timeout=60)[1]


def test_more_workers_than_this_machine_has_room_for_are_refused_before_one_starts(root: Path) -> None:
    mapping = experiment(root, workers={"min": 2, "max": 3, "cpus": 1000})
    wanted = r"at least 2 of 1000 CPU each, and Ray on this machine has room for 0; no node ever joins"
    with pytest.raises(RequestError, match=wanted):
        train.run(parse(mapping), run_id="large")
    assert not happened(root, "large", "worker started") and len(happened(root, "large", "run refused")) == 1


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def test_a_market_is_refused_where_a_run_or_a_sweep_would_start_ray_itself(root: Path) -> None:
    mapping = sweep(root, "local", 1, {"train.seed": {"choice": [1]}})
    mapping["cluster"]["market"] = "spot"
    for work, run_id in ((train.run, "market"), (tune.run, "markets")):
        with pytest.raises(
            RequestError, match=r"cluster\.market is spot, .* no nodes with the label ray\.io/market-type"
        ):
            work(parse(mapping), run_id=run_id)

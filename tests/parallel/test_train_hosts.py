"""Trainings on several hosts, network namespaces with a Ray node each: cut, stopped, drained, powered off."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private import state

from mltrain import tune
from mltrain.errors import StoppedError
from mltrain.results import read_events, read_metrics
from mltrain.results.spent import spent
from mltrain.spot import LEAD_S
from mltrain.storage import open_store
from mltrain.train import pulses
from tests.support.datasets import make_dataset
from tests.support.drill import Drill, check_exact, drill, paced
from tests.support.hosts import Host, Hosts, hosts, unavailable
from tests.support.metadata import serving
from tests.support.processes import wait_until
from tests.support.sweeps import events, sweep
from tests.support.training import ROWS, parse

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# Of heartbeats, in the default config; and how much later the next step may be done on a machine that is busy.
DEADLINE_S, SLACK_S = 2.0, 6.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    markets = {"head": "spot", "h1": "spot", "h2": "spot", "h3": "on-demand"}
    with hosts(3, tmp_path_factory.mktemp("hosts"), cpus=1, markets=markets) as made:
        yield made


@pytest.fixture
def intact(three: Hosts) -> Hosts:
    three.mend()
    return three


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make_dataset(directory, rows=ROWS, shards=6)
    return directory


@pytest.fixture
def mapping(root: Path, intact: Hosts, tmp_path: Path) -> dict[str, Any]:
    """An endless experiment on all hosts, a worker each."""
    return paced(root, intact.address, tmp_path, {"min": 1, "max": 3, "wait_s": 60})


def hosts_of(run: Drill, hosts: Hosts) -> dict[str, Host]:
    """The host of every worker so far."""
    nodes = {host.node_id: host for host in hosts}
    return {event["worker"]: nodes[event["node"]] for event in run.events("worker ready") if event["node"] in nodes}


def test_a_cut_host_costs_the_deadline_and_comes_back_with_another_worker(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    with drill(mapping, "cut") as run:
        run.until("training", generation=1)
        run.until_step(0, 10)
        worker, host = next((w, h) for w, h in hosts_of(run, intact).items() if h.name == "h2")
        pid = next(event["pid"] for event in run.events("worker placed") if event["worker"] == worker)
        cut = time.monotonic()
        host.cut()
        again = run.until("training again")
        assert again["at"] - cut < DEADLINE_S + SLACK_S and again["steps_repeated"] == 1
        run.until("worker lost", worker=worker)
        host.heal()
        # Its old worker must not come back; a new one may, once the node is trusted again.
        wait_until(lambda: not psutil.pid_exists(pid), 30, "end of the old worker")
        grown = run.until("generation formed")
        assert len(grown["members"]) == 3 and worker not in grown["members"]
        run.until("training", generation=grown["generation"])
        run.stop()
    assert len(run.events("worker lost")) == 1
    check_exact(root, "cut", mapping)


def test_cuts_and_stops_shorter_than_the_deadline_go_unnoticed(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    with drill(mapping, "blinks") as run:
        run.until("training", generation=1)
        for name, blink, undo in (("h1", Host.cut, Host.heal), ("h3", Host.stop, Host.resume)):
            run.until_step(0, 10)
            blink(intact[name])
            time.sleep(DEADLINE_S / 4)
            undo(intact[name])
        run.until_step(2, 0)
        run.stop()
    assert not run.events("worker lost") and len(run.events("generation formed")) == 1
    check_exact(root, "blinks", mapping)


@pytest.mark.parametrize("collectives", ["horovod", "torch"])
def test_two_hosts_that_lose_power_at_once_with_rank_0_on_one_of_them(
    intact: Hosts, mapping: dict[str, Any], root: Path, collectives: str
) -> None:
    mapping["train"]["collectives"] = collectives
    with drill(mapping, f"power-{collectives}") as run:
        first = run.until("generation formed")["members"][0]
        run.until("training", generation=1)
        run.until_step(0, 10)
        on = hosts_of(run, intact)
        survivor = next(worker for worker in on if worker != first)
        going = [host for worker, host in on.items() if worker != survivor]
        # Ending what runs there takes a while: their links go at once.
        for host in going:
            host.cut()
        for host in going:
            host.power_off()
        again = run.until("training again")
        assert again["downtime_s"] < SLACK_S and again["steps_repeated"] <= 2
        assert run.events("generation formed")[-1]["members"] == [survivor]
        on[first].start()
        grown = run.until("generation formed")
        assert len(grown["members"]) == 2 and grown["members"][0] == survivor
        run.until("training", generation=grown["generation"])
        run.stop()
    check_exact(root, f"power-{collectives}", mapping)


def test_a_drained_host_is_left_without_losing_a_step_and_the_last_one_with_a_checkpoint(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    with drill(mapping, "drain") as run:
        run.until("training", generation=1)
        run.until_step(0, 10)
        intact["h1"].drain(60)
        smaller = run.until("generation formed")
        assert len(smaller["members"]) == 2
        run.until("training", generation=smaller["generation"])
        run.until_step(2, 0)
        for name in ("h2", "h3"):
            intact[name].drain(60)
        saved = run.until("checkpoint")
        run.until("worker released")
        run.stop()
    assert isinstance(run.error, StoppedError) and not run.events("worker lost")
    assert saved["step"] == len(read_metrics(open_store(root), "drain"))
    check_exact(root, "drain", mapping)


def test_a_clouds_notice_drains_the_host_and_the_run_leaves_it_without_losing_a_step(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    with serving(intact.head) as metadata:
        mapping["cluster"]["notices"] = {"source": "aws", "address": metadata.address}
        with drill(mapping, "notice") as run:
            run.until("training", generation=1)
            run.until_step(0, 10)
            leaving = intact["h2"]
            node, at = leaving.node_id, int(time.time() + LEAD_S) - 10
            metadata.interrupt(at, leaving.address)
            notice = run.until("notice")
            assert (notice["node"], notice["deadline"], notice["action"]) == (node, at, "drain")
            run.until("node drained", node=node)
            smaller = run.until("generation formed")
            assert len(smaller["members"]) == 2
            run.until("training", generation=smaller["generation"])
            # Nobody is left there, and nothing new lands there: its Ray ends by itself.
            wait_until(lambda: leaving.node_id is None, 30, "end of the drained node")
            run.until_step(2, 0)
            run.stop()
        assert not run.events("worker lost")
        assert not [event for event in run.events("worker started")[3:] if event["node"] == node]
        # Every host has been asking, by itself.
        assert metadata.requests.count(("PUT", "/latest/api/token")) >= 3
    check_exact(root, "notice", mapping)


def test_an_on_demand_host_stands_in_for_a_spot_host_until_that_is_back(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    mapping["cluster"]["market"] = {"workers": "spot-then-on-demand", "wait_s": 1}
    mapping["train"]["workers"]["max"] = 2
    with drill(mapping, "market") as run:
        run.until("training", generation=1)
        run.until_step(0, 10)
        assert [(event["market"], event["stand_in"]) for event in run.events("worker started")] == [("spot", False)] * 2
        intact["h2"].power_off()
        standing = run.until("worker started", market="on-demand")
        assert standing["stand_in"] and standing["node"] == intact["h3"].node_id
        run.until("worker ready", worker=standing["worker"])
        both = run.until("generation formed")
        assert standing["worker"] in both["members"] and len(both["members"]) == 2
        run.until("training", generation=both["generation"])
        intact["h2"].start()
        run.until("worker released", worker=standing["worker"])
        back = run.events("worker ready")[-1]
        after = run.until("generation formed")
        assert back["node"] == intact["h2"].node_id
        assert back["worker"] in after["members"] and len(after["members"]) == 2
        run.stop()
    assert len(run.events("training again")) == 1
    found = spent(read_events(open_store(root), "market"))
    assert sorted(found) == ["on-demand", "spot"] and 0 < found["on-demand"].training < found["spot"].training
    check_exact(root, "market", mapping)


def test_what_drives_a_sweep_is_kept_off_spot_hosts(intact: Hosts, root: Path) -> None:
    space = {"train.optimizer.lr": {"choice": [0.01]}}
    mapping = sweep(root, intact.address, {"min": 1, "max": 1}, space)
    mapping["cluster"]["market"] = "spot"
    assert tune.run(parse(mapping), run_id="placed").status == "finished"
    nodes = {host.node_id: host.name for host in intact}
    where = {
        # Tune's class of trials is told with or without the function that makes it.
        actor["ActorClassName"].rpartition(".")[2]: nodes.get(actor["Address"]["NodeID"])
        for actor in state.actors().values()
    }
    assert (where["Broker"], where["ImplicitFunc"]) == ("h3", "h3")
    assert {event["market"] for event in events(root, "placed-000", "worker started")} == {"spot"}


def test_a_host_cut_from_the_controller_alone_is_as_good_as_gone(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    with drill(mapping, "parted") as run:
        run.until("training", generation=1)
        run.until_step(0, 10)
        intact["h3"].part(intact.head)
        again = run.until("training again")
        assert again["downtime_s"] < SLACK_S
        assert len(run.events("generation formed")[-1]["members"]) == 2
        run.stop()
    check_exact(root, "parted", mapping)


def test_a_host_cut_from_its_peers_alone_is_found_and_replaced(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    with drill(mapping, "lonely") as run:
        run.until("training", generation=1)
        run.until_step(0, 10)
        worker, host = next((w, h) for w, h in hosts_of(run, intact).items() if h.name == "h2")
        for other in intact:
            if other is not host:
                host.part(other.address)
        run.until("generation stalled")
        assert run.until("worker lost")["worker"] == worker
        run.until("training again")
        assert len(run.events("generation formed")[-1]["members"]) == 2
        run.stop()
    check_exact(root, "lonely", mapping)


def test_a_slow_worker_is_named_and_replaced_if_it_stays_slow(
    intact: Hosts, mapping: dict[str, Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulses, "_PERSISTS_S", 3.0)
    mapping["train"]["workers"]["max"] = 2
    with drill(mapping, "slow") as run:
        members = run.until("generation formed")["members"]
        run.until("training", generation=1)
        pid = next(event["pid"] for event in run.events("worker placed") if event["worker"] == members[0])
        (tmp_path / f"slow-{pid}").touch()
        began = time.monotonic()
        named = run.until("straggler")
        assert named["worker"] == members[0] and named["at"] - began < 10 + SLACK_S
        formed = run.until("generation formed")
        assert members[1] in formed["members"] and members[0] not in formed["members"]
        run.until("worker released", worker=members[0])
        run.stop()
    assert not run.events("worker lost")
    check_exact(root, "slow", mapping)


def test_below_the_minimum_the_run_waits_saves_and_stops_and_the_same_command_goes_on(
    intact: Hosts, mapping: dict[str, Any], root: Path
) -> None:
    mapping["train"]["workers"] |= {"min": 2, "wait_s": 20}
    with drill(mapping, "scarce") as run:
        run.until("training", generation=1)
        run.until_step(0, 10)
        for name in ("h1", "h3"):
            intact[name].power_off()
        run.join()
    assert isinstance(run.error, StoppedError) and run.error.exit_code == 75
    saved = run.events("checkpoint")[-1]["step"]
    assert saved == len(read_metrics(open_store(root), "scarce"))
    intact.mend()
    with drill(mapping, "scarce") as again:
        assert again.until("training")["step"] == saved
        again.until_step(2, 0)
        again.stop()
    check_exact(root, "scarce", mapping)

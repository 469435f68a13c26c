"""Which nodes workers, and what drives them, are placed on by what the nodes cost."""

from typing import Any

import pytest

from mltrain import config as configs
from mltrain.config import Experiment, Market
from mltrain.errors import ConfigError
from mltrain.train.market import Patience, allowed, described, lasting, second, suits, wanted

LABEL = "ray.io/market-type"
SPOT, ON_DEMAND = {LABEL: "spot"}, {LABEL: "on-demand"}


def experiment(market: object, **train: Any) -> Experiment:
    parsed = configs.parse(
        {"name": "a", "dataset": "d", "model": {}, "train": train, "cluster": {"market": market, "address": "h:6379"}}
    )
    assert isinstance(parsed, Experiment)
    return parsed


def test_without_a_market_any_node_will_do() -> None:
    market = Market()
    assert (wanted(market), second(market), allowed(market), described(market)) == ({}, None, {}, None)
    assert suits({}, market) and suits(SPOT, market)


@pytest.mark.parametrize(("name", "first"), [("spot", SPOT), ("on-demand", ON_DEMAND)])
def test_one_market_is_asked_for_by_its_label_and_nothing_stands_in(name: Any, first: dict[str, str]) -> None:
    market = Market(workers=name)
    assert (wanted(market), second(market), allowed(market)) == (first, None, {LABEL: f"in({name})"})
    assert [suits(labels, market) for labels in (SPOT, ON_DEMAND, {})] == [first == SPOT, first == ON_DEMAND, False]
    assert described(market) == f"ray.io/market-type={name}"


def test_spot_then_on_demand_asks_for_spot_first_under_the_label_that_the_cluster_has() -> None:
    market = Market(workers="spot-then-on-demand", label="example.com/pool")
    assert (wanted(market), second(market)) == ({"example.com/pool": "spot"}, {"example.com/pool": "on-demand"})
    assert allowed(market) == {"example.com/pool": "in(spot,on-demand)"}
    assert suits({"example.com/pool": "on-demand"}, market) and not suits(SPOT, market)
    assert described(market) == "example.com/pool=spot or on-demand"


def test_what_drives_workers_is_kept_off_spot_nodes_where_there_are_others() -> None:
    market = Market()
    assert lasting([SPOT, ON_DEMAND], market) == lasting([SPOT, {}], market) == {LABEL: "!spot"}
    assert lasting([{}], market) == {LABEL: "!spot"}
    assert lasting([SPOT, SPOT], market) == lasting([], market) == {}


def test_others_stand_in_once_nodes_have_stayed_away_and_for_as_long_as_they_do() -> None:
    patience = Patience(300.0)
    assert not patience.wants(2, 10.0) and not patience.wants(2, 309.0)
    assert patience.wants(2, 310.0)
    # More are missing: that spot stays away is known by now.
    assert patience.wants(3, 311.0)
    patience.came(400.0)
    assert not patience.wants(2, 699.0) and patience.wants(2, 700.0)
    # Nobody is missing: what is lost later waits anew.
    assert not patience.wants(0, 800.0) and not patience.wants(1, 900.0)


def test_a_word_is_the_market_of_workers() -> None:
    assert experiment("spot").cluster.market == Market(workers="spot")
    assert experiment({"workers": "spot", "label": "pool"}).cluster.market == Market(workers="spot", label="pool")
    assert experiment(None).cluster.market == Market()


@pytest.mark.parametrize(
    ("market", "train", "said"),
    [
        ("preemptible", {}, "cluster.market is 'preemptible'; want any, spot, on-demand or spot-then-on-demand"),
        (3, {}, "want any, spot, on-demand or spot-then-on-demand, or a mapping with workers, wait_s and label"),
        ({"label": "ray.io/"}, {}, "want a label of Ray nodes, as in ray.io/market-type"),
        ({"workers": "spot", "labels": "pool"}, {}, "did you mean cluster.market.label?"),
        (
            "spot-then-on-demand",
            {"workers": {"max": 4, "wait_s": 60}},
            "cluster.market: without spot nodes a run stops after 60 s .* stand in after 300 s .*; want less than 60",
        ),
    ],
)
def test_a_market_that_cannot_be_is_refused(market: object, train: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        experiment(market, **train)


def test_a_run_that_waits_longer_than_for_spot_may_fall_back() -> None:
    market = {"workers": "spot-then-on-demand", "wait_s": 30}
    assert experiment(market, workers={"max": 4, "wait_s": 60}).cluster.market.wait_s == 30
    assert experiment("spot-then-on-demand", workers=0).cluster.market.wait_s == 300

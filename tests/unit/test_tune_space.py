from typing import Any

import pytest

from mltrain import config as configs
from mltrain.errors import ConfigError
from mltrain.tune.result import Trial, best_of
from mltrain.tune.space import points, trial_config


def experiment(**tune: Any) -> configs.Experiment:
    space = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}, "model.args.hidden": {"choice": [[8], [16, 8]]}}
    mapping = {"name": "e", "root": "/tmp", "dataset": "d", "model": {}, "tune": {"trials": 5, "space": space, **tune}}
    parsed = configs.parse(mapping)
    assert isinstance(parsed, configs.Experiment)
    return parsed


def test_trials_follow_from_the_seed_alone() -> None:
    first, again = points(experiment(), "s"), points(experiment(), "s")
    assert first == again
    assert len({point.parameters["train.optimizer.lr"] for point in first}) == 5
    assert [point.run_id for point in first] == ["s-000", "s-001", "s-002", "s-003", "s-004"]


def test_a_longer_sweep_begins_with_the_trials_of_a_shorter_one() -> None:
    assert points(experiment(trials=9), "s")[:5] == points(experiment(), "s")


def test_another_seed_draws_other_trials() -> None:
    other = configs.parse(experiment().model_dump(mode="json", exclude_none=True), overrides={"train.seed": 1})
    assert isinstance(other, configs.Experiment)
    assert points(other, "s")[0].parameters != points(experiment(), "s")[0].parameters


def test_a_grid_tries_every_point_once() -> None:
    space = {"train.optimizer.lr": {"choice": [0.1, 0.01]}, "train.epochs": {"choice": [1, 2, 3]}}
    tried = points(experiment(search="grid", trials=None, space=space), "s")
    assert [tuple(point.parameters.values()) for point in tried] == [
        (0.1, 1), (0.1, 2), (0.1, 3), (0.01, 1), (0.01, 2), (0.01, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("domain", "kind"),
    [
        ({"uniform": [0, 1]}, float),
        ({"quniform": [0, 1, 0.25]}, float),
        ({"loguniform": [0.001, 1]}, float),
        ({"qloguniform": [0.01, 1, 0.01]}, float),
    ],
)
def test_every_kind_of_range_is_drawn_as_plain_numbers(domain: dict[str, Any], kind: type[float]) -> None:
    drawn = [p.parameters["model.args.dropout"] for p in points(experiment(space={"model.args.dropout": domain}), "s")]
    assert all(type(value) is kind and 0 <= value <= 1 for value in drawn)


@pytest.mark.parametrize("name", ["randint", "lograndint"])
def test_whole_numbers_leave_out_the_upper_end(name: str) -> None:
    drawn = [p.parameters["train.epochs"] for p in points(experiment(space={"train.epochs": {name: [1, 3]}}), "s")]
    assert {type(value) for value in drawn} == {int}
    assert set(drawn) <= {1, 2}


def test_a_trials_config_holds_its_parameters_and_no_sweep() -> None:
    config = trial_config(experiment(), {"train.optimizer.lr": 0.5, "model.args.hidden": [8]})
    assert config.train.optimizer.lr == 0.5
    assert config.model.args == {"hidden": [8]}
    assert config.tune is None


def test_a_combination_that_is_no_valid_config_is_refused_before_anything_starts() -> None:
    space = {"train.optimizer.name": {"choice": ["sgd", "adamw"]}, "train.optimizer.momentum": {"choice": [0.0, 0.9]}}
    mapping = {
        "name": "e", "root": "/tmp", "dataset": "d", "model": {},
        "train": {"optimizer": {"name": "sgd"}},
        "tune": {"search": "grid", "space": space},
    }  # fmt: skip
    config = configs.parse(mapping)  # each value is valid on its own
    assert isinstance(config, configs.Experiment)
    with pytest.raises(ConfigError, match=r"tune\.space can draw .*momentum does not go with optimizer adamw"):
        points(config, "s")


def test_an_experiment_without_a_space_is_refused() -> None:
    mapping = {"name": "e", "root": "/tmp", "dataset": "d", "model": {}}
    config = configs.parse(mapping)
    assert isinstance(config, configs.Experiment)
    with pytest.raises(ConfigError, match="has no tune: say what is searched"):
        points(config, "s")


def test_the_best_trial_follows_the_mode_and_ignores_what_is_not_a_number() -> None:
    trials = [
        Trial(name, {}, metrics={"validation/auc": value})
        for name, value in (("a", 0.8), ("b", 0.9), ("c", float("nan")))
    ] + [Trial("d", {})]
    best, worst = best_of(trials, "validation/auc", "max"), best_of(trials, "validation/auc", "min")
    assert best is not None and best.run_id == "b"
    assert worst is not None and worst.run_id == "a"
    assert best_of(trials, "validation/loss", "min") is None

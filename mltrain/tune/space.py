"""The trials of a sweep: points of its space, drawn before anything starts, each a config of its own."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mltrain import config as configs
from mltrain.errors import ConfigError

if TYPE_CHECKING:
    from mltrain.config import Experiment, TuneConfig

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A trial before it runs.

    Attributes:
        run_id: the trial's run id.
        parameters: what of the config it changes, by dotted key.
    """

    run_id: str
    parameters: Parameters


def points(config: "Experiment", sweep_id: str) -> list[Point]:
    """All trials of a sweep. Trial *i* depends on ``train.seed``, the space and *i* alone.

    Raises:
        ConfigError: a combination that was drawn is not a valid config.
    """
    tune = config.require_tune()
    drawn = _grid(tune) if tune.search == "grid" else _random(tune, config.train.seed)
    found = [Point(f"{sweep_id}-{index:03d}", parameters) for index, parameters in enumerate(drawn)]
    for point in found:
        trial_config(config, point.parameters)
    return found


def trial_config(config: "Experiment", parameters: Mapping[str, Any]) -> "Experiment":
    """The config of one trial: the sweep's without ``tune``, with the trial's parameters put in.

    Raises:
        ConfigError: the combination is not valid.
    """
    data = config.model_dump(mode="json", exclude_none=True, exclude={"tune"})
    try:
        trial = configs.parse(data, parameters)
    except ConfigError as error:
        raise ConfigError(f"tune.space can draw {dict(parameters)}, which is not a valid config: {error}") from error
    assert isinstance(trial, configs.Experiment)
    return trial


def _grid(tune: "TuneConfig") -> Iterator[Parameters]:
    choices = [domain["choice"] for domain in tune.space.values()]
    for values in itertools.product(*choices):
        yield dict(zip(tune.space, values, strict=True))


def _random(tune: "TuneConfig", seed: int) -> Iterator[Parameters]:
    from ray import tune as ray_tune

    domains = {}
    for key, domain in tune.space.items():
        name, arguments = next(iter(domain.items()))
        make = getattr(ray_tune, name)
        domains[key] = make(arguments) if name == "choice" else make(*arguments)
    for index in range(tune.trials or 0):
        # A trial has a stream of its own, so that a longer sweep begins with the trials of a shorter one.
        state = np.random.RandomState(np.random.SeedSequence([seed & (2**64 - 1), index]).generate_state(4))
        yield {key: _plain(domain.sample(random_state=state)) for key, domain in domains.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

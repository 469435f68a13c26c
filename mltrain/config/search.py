"""Models of a sweep: how many trials, from which space, and which of them go on."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mltrain.config.strict import PositiveInt, Strict

Domain = dict[str, Any]


class Scheduler(Strict):
    """Which trials go on."""

    name: Literal["fifo", "asha"] = "fifo"
    """`fifo` runs every trial to its end; `asha` stops the worse part at every rung (Li et al., 2020, \
arXiv:1810.05934)."""
    grace_steps: PositiveInt | None = None
    """asha: no trial is stopped before so many steps; 1 by default."""
    reduction_factor: int | None = Field(default=None, ge=2)
    """asha: one of so many trials goes on at every rung; 3 by default."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_name(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        options = [key for key in ("grace_steps", "reduction_factor") if key in given]
        if given.get("name", "fifo") == "fifo" and options:
            raise ValueError(f"{' and '.join(options)} go with scheduler asha, not with fifo")
        if given.get("name") == "asha":
            return {"grace_steps": 1, "reduction_factor": 3, **given}
        return given


class TuneConfig(Strict):
    """A sweep over hyperparameters."""

    trials: PositiveInt | None = None
    """How many; 10 for `random`, every point for `grid`."""
    search: Literal["random", "grid"] = "random"
    """`random` draws from the space; `grid` tries every point of `choice` entries."""
    scheduler: Scheduler = Scheduler()
    """Which trials go on."""
    space: dict[str, Domain] = Field(min_length=1)
    """By dotted key of this file, what is tried: `{loguniform: [1e-4, 1e-1]}`, with Ray Tune's names."""

    @field_validator("space")
    @classmethod
    def _domains(cls, given: dict[str, Domain]) -> dict[str, Domain]:
        for key, domain in given.items():
            _check_key(key)
            _check_domain(key, domain)
        return given

    @model_validator(mode="before")
    @classmethod
    def _trials_by_search(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("trials") is None and given.get("search", "random") == "random":
            return {**given, "trials": 10}
        return given

    @model_validator(mode="after")
    def _grid_is_finite(self) -> Self:
        if self.search != "grid":
            return self
        for key, domain in self.space.items():
            if "choice" not in domain:
                raise ValueError(f"search grid needs {{choice: […]}} for {key}, not {next(iter(domain))}")
        points = math.prod(len(domain["choice"]) for domain in self.space.values())
        if self.trials is not None and self.trials != points:
            raise ValueError(f"search grid has {points} points, not {self.trials} trials; leave trials out")
        return self


_SEARCHABLE = ("train.", "model.")
# What a trial must not change: the sweep compares trials on one dataset by one objective.
_FIXED = ("train.workers", "train.heartbeat", "train.collectives", "train.checkpoint", "train.evaluate")


def _check_key(key: str) -> None:
    if not key.startswith(_SEARCHABLE):
        raise ValueError(f"space key {key!r}: want a key of train or model, such as train.optimizer.lr")
    if any(key == fixed or key.startswith(f"{fixed}.") for fixed in _FIXED):
        raise ValueError(f"space key {key!r} is the same for every trial: set it outside tune.space")


def _check_domain(key: str, domain: Domain) -> None:
    if len(domain) != 1:
        raise ValueError(f"space {key}: want one of {', '.join(_CHECKS)}, as in {{uniform: [0, 1]}}; found {domain!r}")
    name, arguments = next(iter(domain.items()))
    if name not in _CHECKS:
        raise ValueError(f"space {key}: {name!r} is not a way to draw; want {', '.join(_CHECKS)}")
    if not isinstance(arguments, list | tuple):
        raise ValueError(f"space {key}: {name} wants a list, as in {{{name}: [0, 1]}}; found {arguments!r}")
    problem = _CHECKS[name](list(arguments))
    if problem:
        raise ValueError(f"space {key}: {name} {list(arguments)!r}: {problem}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(*, whole: bool = False, log: bool = False, quantum: bool = False) -> Callable[[list[Any]], str]:
    count = 3 if quantum else 2

    def check(arguments: list[Any]) -> str:
        if len(arguments) != count or not all(_number(value) for value in arguments):
            return f"want {'[low, high, step]' if quantum else '[low, high]'}, numbers"
        if whole and not all(isinstance(value, int) for value in arguments):
            return "want whole numbers"
        if arguments[0] >= arguments[1]:
            return "low is not below high"
        if log and arguments[0] <= 0:
            return "a log scale begins above 0"
        if quantum and arguments[2] <= 0:
            return "the step is not above 0"
        return ""

    return check


def _choice(arguments: list[Any]) -> str:
    return "" if arguments else "the list is empty"


_CHECKS: Mapping[str, Callable[[list[Any]], str]] = {
    "uniform": _range(),
    "quniform": _range(quantum=True),
    "loguniform": _range(log=True),
    "qloguniform": _range(log=True, quantum=True),
    "randint": _range(whole=True),
    "lograndint": _range(whole=True, log=True),
    "choice": _choice,
}


def extremes(domain: Domain) -> list[Any]:
    """Values that a domain can take and that are worth checking: all choices, or both ends of a range."""
    name, arguments = next(iter(domain.items()))
    if name == "choice":
        return list(arguments)
    low, high = arguments[:2]
    # Ray's integer ranges leave out their upper end.
    return [low, high - 1] if name in ("randint", "lograndint") else [float(low), float(high)]

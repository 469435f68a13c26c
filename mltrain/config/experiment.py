"""Models of an experiment file: which dataset, which model, how it is trained, and what is searched."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from mltrain.config.dataset import DatasetSpec
from mltrain.config.search import TuneConfig
from mltrain.config.strict import (
    KeyedValueError,
    Name,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Strict,
)
from mltrain.config.surroundings import CacheConfig, Market, Notices, StorageConfig
from mltrain.errors import ConfigError

_REFERENCE = r"^[^:\s]+:[A-Za-z_]\w*$"

# Of the metrics that the library computes: which way is better.
_MINIMISED = frozenset({"loss", "log_loss", "rmse", "mse", "mae", "brier", "ece"})
_MAXIMISED = frozenset({"auc", "accuracy", "f1", "macro_f1", "precision", "recall", "r2", "auc_pr", "mcc"})


class ModelConfig(Strict):
    """The function that builds the model."""

    factory: str = Field(default="mltrain.models:tabular_mlp", pattern=_REFERENCE)
    """`package.module:function`, or `./file.py:function` relative to the config file."""
    args: dict[str, Any] = Field(default={})
    """Keyword arguments of the factory, after the schema."""


class Objective(Strict):
    """What best means: for the best checkpoint, early stopping and the sweep alike."""

    metric: str = Field(default="validation/loss", pattern=r"^[A-Za-z0-9][\w.-]*/\w[\w.@/-]*$")
    """`<split>/<name>`, as in `validation/auc`."""
    mode: Literal["min", "max"] = "min"
    """Which way is better; known for the library's own metrics."""

    @property
    def split(self) -> str:
        return self.metric.partition("/")[0]

    @model_validator(mode="before")
    @classmethod
    def _known_mode(cls, given: Any) -> Any:
        metric = given.get("metric", "validation/loss") if isinstance(given, dict) else None
        if not isinstance(metric, str):
            return given
        name = metric.rpartition("/")[2].rpartition(".")[2]  # of several tasks: validation/click.auc
        known = "min" if name in _MINIMISED else "max" if name in _MAXIMISED else None
        mode = given.get("mode")
        if mode is None and known is None and "/" in metric:
            raise ValueError(f"metric {metric!r} is not one of the library's: say mode: min or mode: max")
        if known is not None and mode in ("min", "max") and mode != known:
            raise ValueError(f"mode {mode} would look for the worst {name}; want {known}")
        return {**given, "mode": mode or known} if mode or known else given

    @model_validator(mode="after")
    def _not_on_test(self) -> Self:
        if self.split == "test":
            raise ValueError(f"metric {self.metric!r}: the test split must not choose anything; want validation/…")
        return self


class OptimizerConfig(Strict):
    """The optimizer, unless the model has its own."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Which one, as in torch.optim."""
    lr: PositiveFloat = 1e-3
    """Learning rate; with a schedule, its peak."""
    weight_decay: NaturalFloat | None = None
    """0.01 for adamw, else 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """sgd only: 0 by default."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] | None = None
    """adam and adamw only: [0.9, 0.999] by default."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_name(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        name = given.get("name", "adamw")
        own, foreign = ("momentum", "betas") if name == "sgd" else ("betas", "momentum")
        defaults: dict[str, Any] = {"momentum": 0.0, "betas": (0.9, 0.999)}
        # A sweep changes the name in a resolved config, which holds the default of the other one.
        if foreign in given and _frozen(given.pop(foreign)) != defaults[foreign]:
            raise ValueError(f"{foreign} does not go with optimizer {name}")
        return {"weight_decay": 0.01 if name == "adamw" else 0.0, own: defaults[own], **given}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class LrSchedule(Strict):
    """How the learning rate moves over the run."""

    name: Literal["constant", "cosine", "linear"]
    """After the warm-up: unchanged, or down to 0 at the last step by a cosine or a line."""
    warmup_steps: NaturalInt = 0
    """Steps over which it rises from 0."""


class EvaluateEvery(Strict):
    """Epochs or steps."""

    epochs: PositiveInt | None = None
    """After every so many epochs."""
    steps: PositiveInt | None = None
    """After every so many steps."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _one_of(self, "epochs", "steps")
        return self


class CheckpointEvery(Strict):
    """Steps or seconds."""

    steps: PositiveInt | None = None
    """After every so many steps."""
    seconds: PositiveFloat | None = None
    """After so much time."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        _one_of(self, "steps", "seconds")
        return self


def _one_of(given: Strict, first: str, second: str) -> None:
    if (getattr(given, first) is None) == (getattr(given, second) is None):
        raise ValueError(f"want {first} or {second}, one of them, as in {{{first}: 1}}")


class Evaluate(Strict):
    """When the model is evaluated; each evaluation is also a checkpoint, and the end of a run is one."""

    every: EvaluateEvery = EvaluateEvery(epochs=1)
    """{epochs: N} or {steps: N}."""


class EarlyStopping(Strict):
    """Ends a run that no longer gets better."""

    patience: PositiveInt
    """Evaluations without a new best before the run ends."""
    min_delta: NaturalFloat = 0.0
    """By how much the objective has to be better to count."""


class Workers(Strict):
    """How many processes train, and what each gets. An int is a fixed number; 0 trains in this process."""

    min: NaturalInt = 0
    """Below this the run waits."""
    max: Annotated[NaturalInt, Field(le=10_000)] = 0
    """More are not used."""
    cpus: NaturalFloat = 1.0
    """CPUs of each worker."""
    gpus: NaturalFloat = 0.0
    """GPUs of each worker."""
    wait_s: NaturalFloat = 600.0
    """How long a run below `min` waits before it makes a checkpoint and stops, in seconds."""

    @model_validator(mode="before")
    @classmethod
    def _fixed(cls, given: Any) -> Any:
        if isinstance(given, int) and not isinstance(given, bool):
            return {"min": given, "max": given}
        if isinstance(given, dict):
            given = {key: value for key, value in given.items() if value is not None}
            if "min" in given and "max" not in given:
                return {**given, "max": given["min"]}
            if "max" in given and "min" not in given and given["max"] != 0:
                return {**given, "min": 1}
        return given

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        if self.min == 0 and self.max > 0:
            raise ValueError(f"min 0 with max {self.max}: 0 means in this process; want min 1 or more")
        return self


class CheckpointConfig(Strict):
    """When checkpoints are made besides the evaluations, and how many are kept."""

    every: Literal["auto"] | CheckpointEvery = "auto"
    """`auto` (from the measured cost of a checkpoint and rate of losses), {steps: N} or {seconds: N}."""
    keep: PositiveInt = 3
    """The best and this many of the last ones stay."""


class Heartbeat(Strict):
    """How a worker that went silent is noticed: after `interval_s` x `misses`."""

    interval_s: Annotated[float, Field(ge=0.01, le=60, allow_inf_nan=False)] = 0.5
    """Seconds between two signs of life."""
    misses: Annotated[PositiveInt, Field(le=1000)] = 4
    """So many missing ones mean that the worker is lost."""


class TrainConfig(Strict):
    """How the model is trained."""

    epochs: PositiveInt | None = None
    """Passes over the train split; 5 where `max_steps` is not given either."""
    max_steps: PositiveInt | None = None
    """The run ends after so many steps at the latest."""
    global_batch_size: PositiveInt = 1024
    """Rows of one step over all workers; it never changes with their number."""
    max_local_batch_size: PositiveInt = 16_384
    """A worker whose share of a step is larger accumulates gradients."""
    optimizer: OptimizerConfig = OptimizerConfig.model_validate({})
    """The optimizer, unless the model has its own."""
    lr_schedule: LrSchedule | None = None
    """How the learning rate moves; constant where it is not given."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast with fp32 gradients."""
    gradient_clip_norm: PositiveFloat | None = None
    """Gradients are scaled down to this norm."""
    evaluate: Evaluate = Evaluate()
    """When the model is evaluated."""
    early_stopping: EarlyStopping | None = None
    """Ends a run that no longer gets better."""
    workers: Workers = Workers()
    """How many processes train: an int, or a range."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are made."""
    seed: Seed = 0
    """Of the initial weights, the order of rows and everything else that is random."""
    heartbeat: Heartbeat = Heartbeat()
    """How a silent worker is noticed."""
    collectives: Literal["horovod", "torch"] = "horovod"
    """What reduces gradients between workers: Horovod, or torch.distributed."""

    @model_validator(mode="before")
    @classmethod
    def _some_end(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("epochs") is None and given.get("max_steps") is None:
            return {**given, "epochs": 5}
        return given


class ClusterConfig(Strict):
    """The Ray cluster."""

    address: str = "auto"
    """`auto`: RAY_ADDRESS, else a running cluster, else one started here; `local`; or `host:port`."""
    runtime_env: dict[str, Any] = Field(default={})
    """Verbatim to Ray."""
    notices: Notices = Notices()
    """Who says that a node goes away."""
    market: Market = Market()
    """Which nodes workers are placed on: spot, on-demand, or both."""

    @field_validator("address")
    @classmethod
    def _an_address(cls, given: str) -> str:
        if given in ("auto", "local") or re.fullmatch(r"(ray://)?[^\s:/]+:\d{1,5}", given):
            return given
        raise ValueError(f"address {given!r}: want auto, local or host:port")


def _dataset_form(given: Any) -> str:
    return "name" if isinstance(given, str) else "mapping"


class Experiment(Strict):
    """A training or a sweep, and where its results go."""

    name: Name
    """Run ids begin with it."""
    root: str = "./out"
    """Where everything goes: a path or a URI."""
    dataset: Annotated[
        Annotated[str, Field(min_length=1), Tag("name")] | Annotated[DatasetSpec, Tag("mapping")],
        Discriminator(_dataset_form),
    ]
    """A dataset's name, name@digest or URI, or the mapping of a dataset file; resolved once and recorded."""
    model: ModelConfig = ModelConfig()
    """The function that builds the model."""
    objective: Objective = Objective()
    """What best means."""
    train: TrainConfig = TrainConfig.model_validate({})
    """How the model is trained."""
    tune: TuneConfig | None = None
    """What is searched; `mltrain tune run` needs it."""
    cluster: ClusterConfig = ClusterConfig()
    """The Ray cluster."""
    loggers: tuple[Literal["tensorboard"], ...] = ()
    """Besides the run's own Parquet files."""
    callbacks: tuple[Annotated[str, Field(pattern=_REFERENCE)], ...] = ()
    """Classes that see the run's events, as `package.module:Class` or `./file.py:Class`."""
    storage: StorageConfig = StorageConfig()
    """How patient reads and writes are."""
    cache: CacheConfig = CacheConfig()
    """Each node's copy of shards."""
    tags: dict[str, str] = Field(default={})
    """Free text, recorded with the run."""

    @model_validator(mode="after")
    def _objective_has_a_split(self) -> Self:
        if isinstance(self.dataset, str) or self.dataset.split.method == "column":
            return self
        splits = self.dataset.split.fractions
        if self.objective.split not in splits:
            raise ValueError(
                f"objective.metric {self.objective.metric!r}: the dataset has no split {self.objective.split!r}, "
                f"only {', '.join(splits)}; add it to dataset.split.fractions or choose train/loss"
            )
        return self

    @model_validator(mode="after")
    def _stand_ins_come_in_time(self) -> Self:
        market, workers = self.cluster.market, self.train.workers
        if market.workers == "spot-then-on-demand" and workers.max and workers.wait_s <= market.wait_s:
            raise KeyedValueError(
                ("cluster", "market"),
                f"without spot nodes a run stops after {workers.wait_s:g} s (train.workers.wait_s), and on-demand "
                f"nodes stand in after {market.wait_s:g} s (cluster.market.wait_s); want less than {workers.wait_s:g}",
            )
        return self

    def require_tune(self) -> TuneConfig:
        """What is searched, if a sweep over it means something. Not checked before: a training may use the file too.

        Raises:
            ConfigError: nothing is searched, or the scheduler would have nothing to decide.
        """
        if self.tune is None:
            raise ConfigError(f"experiment {self.name} has no tune: say what is searched, or use `mltrain train run`")
        scheduler, steps = self.tune.scheduler, self.train.max_steps
        if scheduler.name != "asha" or steps is None:
            return self.tune
        if (scheduler.grace_steps or 1) >= steps:
            raise ConfigError(
                f"tune.scheduler.grace_steps {scheduler.grace_steps} is not below train.max_steps {steps}: "
                "asha would never stop a trial"
            )
        if (self.train.evaluate.every.steps or 1) >= steps:
            raise ConfigError(
                "tune.scheduler asha judges trials by their evaluations, and train.evaluate.every.steps "
                f"{self.train.evaluate.every.steps} leaves none before train.max_steps {steps}"
            )
        return self.tune

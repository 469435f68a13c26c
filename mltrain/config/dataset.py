"""Models of a dataset file: from which table, which columns are what, and which rows are in which split."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from mltrain.config.strict import (
    Column,
    KeyedValueError,
    Name,
    NaturalInt,
    PositiveFraction,
    PositiveInt,
    Seed,
    Strict,
)
from mltrain.config.surroundings import CacheConfig, StorageConfig

LabelType = Literal["binary", "multiclass", "multilabel", "regression"]
FeatureType = Literal["numeric", "categorical", "hashed", "id_list", "vector"]
Missing = Literal["impute", "indicator", "refuse"]
Class = bool | int | float | str
Reference = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*(@[0-9a-f]{64})?|[0-9a-f]{64})$")]

OPTIONS: Mapping[FeatureType, tuple[str, ...]] = {
    "numeric": ("impute", "scale", "decimal_scale", "missing"),
    "categorical": ("min_count", "max_size", "vocabulary", "missing"),
    "hashed": ("buckets", "missing"),
    "id_list": ("min_count", "max_size", "vocabulary", "max_length", "missing"),
    "vector": ("size", "missing"),
}


class LabelSpec(Strict):
    """What a model predicts: one column of the table."""

    column: Column
    """The column; under `labels` it defaults to the task's name."""
    type: LabelType
    """What kind of prediction."""
    positive: Class | None = None
    """`binary` only: the value that counts as 1; without it the column holds true/false or 0/1."""
    classes: tuple[Class, ...] | None = None
    """`multiclass` and `multilabel` only: the classes in order; without it those of the whole table, sorted."""

    @model_validator(mode="after")
    def _fits_type(self) -> Self:
        if self.positive is not None and self.type != "binary":
            raise ValueError(f"positive goes with type binary, not with {self.type}")
        if self.classes is not None and self.type not in ("multiclass", "multilabel"):
            raise ValueError(f"classes go with type multiclass or multilabel, not with {self.type}")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError(f"classes holds {len(self.classes)} class; want at least 2")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes holds one class twice")
        return self


# An id is an int32, and that of a decimal's unit has room for the digits of any decimal.
Buckets = Annotated[int, Field(ge=2, le=2**31)]
DecimalScale = Annotated[int, Field(ge=0, le=38)]


class NumericDefaults(Strict):
    """For numeric features that do not say it themselves."""

    impute: Literal["median", "mean", "zero"] | FiniteFloat = "median"
    """What stands in for a missing value: a statistic of the train split, 0, or a number in the column's unit."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """How values are scaled, by statistics of the train split."""
    decimal_scale: DecimalScale | None = None
    """How many digits after the point of a decimal column count: it becomes whole units, of 0.01 for 2. Without it \
decimals are refused."""
    missing: Missing = "impute"
    """Rows without a value: `impute`, `indicator` (impute, and say so in a feature of its own) or `refuse`."""


class CategoricalDefaults(Strict):
    """For categorical features that do not say it themselves."""

    min_count: PositiveInt = 1
    """Rarer values of the train split are treated as unseen."""
    max_size: PositiveInt = 1_000_000
    """At most this many values, the most frequent ones, get an id."""
    missing: Missing = "impute"
    """Rows without a value: `impute` gives id 0, as to the unseen; `indicator`, `refuse` as for numeric features."""


class HashedDefaults(Strict):
    """For hashed features that do not say it themselves."""

    buckets: Buckets = 262_144
    """Ids are below this; 0 is missing."""
    missing: Missing = "impute"
    """Rows without a value: `impute` gives id 0; `indicator`, `refuse` as for numeric features."""


class IdListDefaults(Strict):
    """For id_list features that do not say it themselves."""

    min_count: PositiveInt = 1
    """Rarer ids of the train split are treated as unseen; ids that `max_length` cuts off count too."""
    max_size: PositiveInt = 1_000_000
    """At most this many ids, the most frequent ones, are kept apart."""
    max_length: PositiveInt = 100
    """Longer lists keep their last ids."""
    missing: Missing = "impute"
    """Rows without a list: `impute` gives an empty one; `indicator`, `refuse` as for numeric features."""


class VectorDefaults(Strict):
    """For vector features that do not say it themselves."""

    missing: Missing = "refuse"
    """Rows without a vector: `impute` gives zeros; `indicator`, `refuse` as for numeric features."""


class FeatureDefaults(Strict):
    """Options by feature type, where a feature's own patterns do not set them."""

    numeric: NumericDefaults = NumericDefaults()
    """For numeric features."""
    categorical: CategoricalDefaults = CategoricalDefaults()
    """For categorical features."""
    hashed: HashedDefaults = HashedDefaults()
    """For hashed features."""
    id_list: IdListDefaults = IdListDefaults()
    """For id_list features."""
    vector: VectorDefaults = VectorDefaults()
    """For vector features."""


class FeatureSpec(Strict):
    """What is said about the features that a pattern matches."""

    type: FeatureType | None = None
    """Inferred from the column where it is not given."""
    drop: bool = False
    """Not a feature."""
    impute: Literal["median", "mean", "zero"] | FiniteFloat | None = None
    """numeric: what stands in for a missing value: a statistic of the train split, 0, or a number in the column's \
unit."""
    scale: Literal["standard", "minmax", "none"] | None = None
    """numeric: how values are scaled."""
    decimal_scale: DecimalScale | None = None
    """numeric, of decimal columns: how many digits after the point count; the feature counts whole units, of 0.01 \
for 2."""
    min_count: PositiveInt | None = None
    """categorical, id_list: rarer values are treated as unseen."""
    max_size: PositiveInt | None = None
    """categorical, id_list: at most this many values get an id."""
    vocabulary: Name | None = None
    """categorical, id_list: the name of a vocabulary that several features share."""
    buckets: Buckets | None = None
    """hashed: ids are below this."""
    max_length: PositiveInt | None = None
    """id_list: longer lists keep their last ids."""
    size: PositiveInt | None = None
    """vector: how many numbers; needed where the column's type does not say it."""
    missing: Missing | None = None
    """What becomes of rows without a value (null or NaN): `impute` puts something in its place, `indicator` does so \
and adds the feature `<column>__missing` of 0 and 1, `refuse` fails the build."""

    @model_validator(mode="after")
    def _fits_type(self) -> Self:
        given = self.options()
        if self.type is not None and (foreign := [name for name in given if name not in OPTIONS[self.type]]):
            allowed = ", ".join(OPTIONS[self.type])
            raise ValueError(f"{' and '.join(foreign)} do not go with type {self.type}; it takes {allowed}")
        if not any(set(given) <= set(options) for options in OPTIONS.values()):
            raise ValueError(f"{' and '.join(given)} go with no one feature type")
        if self.missing == "refuse" and self.impute is not None:
            raise ValueError("missing: refuse leaves nothing to impute; take one of them out")
        if self.drop and (given or self.type is not None):
            raise ValueError("drop: true goes with no other option")
        return self

    def options(self) -> dict[str, Any]:
        """The options that are set, without ``type`` and ``drop``."""
        return {
            name: value
            for name in dict.fromkeys(option for options in OPTIONS.values() for option in options)
            if (value := getattr(self, name)) is not None
        }


SplitMethod = Literal["random", "stratified", "group", "time", "column"]
_DEFAULT_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


class SplitSpec(Strict):
    """Which rows are in which split."""

    method: SplitMethod = "random"
    """`random` by key; `stratified` keeps a column's shares; `group` keeps equal values together; `time` cuts by \
order, earliest first; `column` reads the split's name from a column. `{group: c}` is short for \
`{method: group, column: c}`, and so for `time` and `column`."""
    column: Column | None = None
    """The column that the method works by; `stratified` takes the label where it is not given."""
    fractions: dict[Name, PositiveFraction] = Field(default=_DEFAULT_FRACTIONS)
    """Shares of the splits, in order; they add up to 1. Not for `column`."""
    seed: Seed = 0
    """Another seed, another split."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        short = [name for name in ("group", "time") if name in given]
        if "column" in given and "method" not in given:
            short.append("column")
        if len(short) > 1 or (short and "method" in given):
            raise ValueError(f"{' and '.join(short)} name a method each; want one of them, or method and column")
        if short:
            column = given.pop(short[0])
            given |= {"method": short[0], "column": column}
        if given.get("method") == "column":
            if given.get("fractions"):
                raise ValueError("fractions do not go with method column: the column names each row's split")
            given["fractions"] = {}
        return given

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        if self.method in ("group", "time", "column") and self.column is None:
            raise ValueError(f"method {self.method} needs column")
        if self.method == "random" and self.column is not None:
            raise ValueError("method random takes no column")
        if self.method != "column":
            total = sum(self.fractions.values())
            if abs(total - 1) > 1e-9:
                raise ValueError(f"fractions add up to {total:.10g}; want 1")
            if "train" not in self.fractions:
                raise ValueError(f"fractions name {', '.join(self.fractions)}; want train among them")
        return self


class DatasetSpec(Strict):
    """A dataset: made from one version of one Delta table."""

    table: str = Field(min_length=1)
    """Delta table: a path, a URI or a catalog name (`schema.table`)."""
    version: NaturalInt | None = None
    """The table's version; without it the latest, resolved once and recorded."""
    timestamp: str | None = None
    """The version as of this time (ISO 8601); instead of `version`."""
    key: tuple[Column, ...] = ()
    """The columns that identify a row for good; without them the whole row stands in."""
    label: LabelSpec | None = Field(default=None, description="needed, unless there are `labels`")
    """The one label; its task is named for the column."""
    labels: dict[Name, LabelSpec] = Field(default={}, description="needed, unless there is a `label`")
    """Several labels by task; instead of `label`."""
    weight: Column | None = None
    """A column of row weights."""
    keep: tuple[Column, ...] = ()
    """Columns carried through that are not features."""
    defaults: FeatureDefaults = FeatureDefaults()
    """Options by feature type."""
    features: dict[str, FeatureSpec] = Field(default={"*": FeatureSpec()})
    """Which columns are features, and how: patterns (`*`, `?`, `[…]`), of which a later one wins. Label, key, weight, \
kept and split columns never match."""
    split: SplitSpec = SplitSpec()
    """Which rows are in which split."""
    rows_per_shard: PositiveInt = 131_072
    """A target for the size of shards. More than 1024 shards of less than 500 rows each are refused."""
    base: Reference | None = None
    """A dataset below the same root (`name`, `name@digest`) to grow from: its fitted transforms and its unchanged \
shards are kept. A plain name is what it points at when the build starts."""

    @model_validator(mode="before")
    @classmethod
    def _label_columns(cls, given: Any) -> Any:
        labels = given.get("labels") if isinstance(given, dict) else None
        if not isinstance(labels, dict):
            return given
        named = {
            task: {"column": task, **label} if isinstance(label, dict) else label for task, label in labels.items()
        }
        return {**given, "labels": named}

    @model_validator(mode="after")
    def _versions_and_labels(self) -> Self:
        if self.version is not None and self.timestamp is not None:
            raise ValueError("version and timestamp both name a version; want one of them")
        if self.label is not None and self.labels:
            raise ValueError("label and labels are both given; label is short for labels with one task")
        if not self.all_labels:
            raise ValueError("label is missing; want label: {column: …, type: binary|multiclass|multilabel|regression}")
        return self

    @model_validator(mode="after")
    def _one_role_a_column(self) -> Self:
        roles = [
            *(("key", column) for column in self.key),
            *(("label", label.column) for label in self.all_labels.values()),
            *([("weight", self.weight)] if self.weight else []),
            *(("keep", column) for column in self.keep),
        ]
        seen: dict[str, str] = {}
        for role, column in roles:
            if column in seen:
                raise ValueError(f"column {column!r} is both {seen[column]} and {role}; want one role a column")
            seen[column] = role
        split = self.split
        if split.method != "stratified" and split.column is not None and seen.get(split.column) in ("label", "weight"):
            raise ValueError(f"split by {split.method} of column {split.column!r}, which is the {seen[split.column]}")
        for pattern in self.features:
            if pattern in seen:
                role = "in keep" if seen[pattern] == "keep" else f"the {seen[pattern]}"
                raise KeyedValueError(("features", pattern), f"column {pattern!r} is {role}: never a feature")
        return self

    @model_validator(mode="after")
    def _stratified_has_a_column(self) -> Self:
        if self.split.method != "stratified" or self.split.column is not None:
            return self
        kinds = [label.type for label in self.all_labels.values()]
        if len(kinds) > 1 or kinds[0] not in ("binary", "multiclass"):
            raise ValueError(f"split stratified needs column: the labels are {', '.join(kinds)}, not one class each")
        return self

    @model_validator(mode="after")
    def _can_grow(self) -> Self:
        if self.base is None:
            return self
        if not self.key:
            raise ValueError("base needs key: without one, rows cannot be found again; set key, or leave base out")
        if self.split.method in ("time", "stratified"):
            raise ValueError(
                f"base does not go with split {self.split.method}: rows would change their split as the table grows; "
                "split by random, group or column, or leave base out"
            )
        return self

    @property
    def all_labels(self) -> dict[str, LabelSpec]:
        """Labels by task, whichever form the file has."""
        return self.labels if self.label is None else {self.label.column: self.label}


class DatasetFile(Strict):
    """A dataset and where it goes."""

    name: Name
    """The dataset's name below the root."""
    root: str = "./out"
    """Where everything goes: a path or a URI."""
    dataset: DatasetSpec
    """What it is made of."""
    storage: StorageConfig = StorageConfig()
    """How patient reads and writes are."""
    cache: CacheConfig = CacheConfig()
    """Each node's copy of shards."""
    tags: dict[str, str] = Field(default={})
    """Free text, recorded with the build."""

"""All transforms of a dataset, fitted: what the build, the loader and serving apply alike."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from mltrain.errors import TableError
from mltrain.transforms.columns import (
    Categorical,
    ClassLabel,
    Feature,
    Field,
    Hashed,
    IdList,
    Indicator,
    MultiLabel,
    Numeric,
    RegressionLabel,
    Target,
    Vector,
    Weight,
)
from mltrain.transforms.vocabulary import Vocabulary

FORMAT_VERSION = 1

# Left out at their defaults: transforms that lack them have the JSON, and datasets the digest, that they always had.
_LATER = ("decimal_scale", "missing")

_KINDS: dict[str, Callable[..., Any]] = {
    kind.kind: kind
    for kind in (
        Numeric,
        Indicator,
        Categorical,
        Hashed,
        IdList,
        Vector,
        ClassLabel,
        MultiLabel,
        RegressionLabel,
        Weight,
    )
}


@dataclass(frozen=True)
class FittedTransforms:
    """Features and targets in the order in which they are packed, and the vocabularies they share."""

    features: tuple[Feature, ...]
    targets: tuple[Target, ...] = ()
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)

    @property
    def schema(self) -> tuple[Field, ...]:
        """The columns that :meth:`apply` makes, in order."""
        return tuple(self._field(one) for one in (*self.features, *self.targets))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Source columns that :meth:`apply` reads, without repeats."""
        return tuple(dict.fromkeys(one.column for one in (*self.features, *self.targets)))

    def apply(self, batch: pa.RecordBatch, *, targets: bool = True) -> pa.RecordBatch:
        """Transform a batch of source rows; columns that no transform reads are left out.

        Args:
            batch: source columns by name.
            targets: also make labels and weight. Serving has none.

        Raises:
            TableError: a column is missing, or a value cannot be represented exactly.
        """
        wanted = (*self.features, *self.targets) if targets else self.features
        missing = [one.column for one in wanted if one.column not in batch.schema.names]
        if missing:
            raise TableError(f"the batch lacks {', '.join(map(repr, missing))}; it has {', '.join(batch.schema.names)}")
        arrays = [self._apply(one, batch.column(one.column)) for one in wanted]
        return pa.RecordBatch.from_arrays(arrays, names=[self._field(one).name for one in wanted])

    def to_json(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """JSON form, and the blobs it names (content hash -> bytes): the large vocabularies."""
        blobs: dict[str, bytes] = {}
        value = {
            "format_version": FORMAT_VERSION,
            "features": [_to_json(one) for one in self.features],
            "targets": [_to_json(one) for one in self.targets],
            "vocabularies": {name: one.to_json(blobs) for name, one in sorted(self.vocabularies.items())},
        }
        return value, blobs

    @classmethod
    def from_json(cls, value: Mapping[str, Any], blob: Callable[[str], bytes]) -> "FittedTransforms":
        """The inverse of :meth:`to_json`.

        Args:
            value: the JSON form.
            blob: reads a blob by its content hash.

        Raises:
            TableError: written by a newer version of mltrain.
            DamagedError: a blob is not what its name says.
        """
        if value["format_version"] != FORMAT_VERSION:
            raise TableError(
                f"these transforms have format {value['format_version']} and this mltrain reads format "
                f"{FORMAT_VERSION}: update mltrain"
            )
        return cls(
            features=tuple(_from_json(one) for one in value["features"]),
            targets=tuple(_from_json(one) for one in value["targets"]),
            vocabularies={name: Vocabulary.from_json(one, blob) for name, one in value["vocabularies"].items()},
        )

    def _field(self, one: Feature | Target) -> Field:
        if isinstance(one, Categorical | IdList):
            return one.field(self.vocabularies[one.vocabulary])
        return one.field()

    def _apply(self, one: Feature | Target, column: pa.Array) -> pa.Array:
        if isinstance(one, Categorical | IdList):
            return one.apply(column, self.vocabularies[one.vocabulary])
        return one.apply(column)


def _to_json(one: Feature | Target) -> dict[str, Any]:
    plain = {field.name for field in fields(one) if field.name in _LATER and getattr(one, field.name) == field.default}
    return {"kind": one.kind, **{name: value for name, value in asdict(one).items() if name not in plain}}


def _from_json(value: Mapping[str, Any]) -> Any:
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items() if name != "kind"}
    return _KINDS[value["kind"]](**given)

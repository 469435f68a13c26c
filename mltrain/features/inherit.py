"""What a dataset takes over from the one that it grows from (``dataset.base``), and whether it can."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mltrain import config
from mltrain.config import DatasetSpec, ResolvedFeature, resolve_features
from mltrain.data.dataset import parse_reference
from mltrain.data.manifest import Manifest, manifest_path
from mltrain.data.publish import read_manifest, read_pointer, read_record
from mltrain.data.shard import blob_path
from mltrain.errors import DamagedError, MltrainError, NotFoundError, RequestError, TableError
from mltrain.features.fit import dataset_schema
from mltrain.features.plan import Plan
from mltrain.storage import Store
from mltrain.transforms import FittedTransforms

FRESH = "build without dataset.base"


@dataclass(frozen=True)
class Base:
    """The dataset to grow from.

    Attributes:
        manifest: of the dataset.
        transforms: its fitted transforms.
        spec: the settings that it was built with.
        record: of a build that made it.
    """

    manifest: Manifest
    transforms: FittedTransforms
    spec: DatasetSpec
    record: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""
        return tuple(split.name for split in self.manifest.splits)


def resolve(store: Store, reference: str) -> str:
    """The digest that ``dataset.base`` stands for: of a plain name what it points at now.

    Raises:
        RequestError: it is no reference to a dataset.
        NotFoundError: there is no dataset of this name.
    """
    wanted = parse_reference(reference, store.uri)
    if wanted.digest is not None or wanted.name is None:
        return str(wanted.digest)
    try:
        return str(read_pointer(store, wanted.name)["digest"])
    except NotFoundError as error:
        raise NotFoundError(
            f"dataset.base: there is no dataset {wanted.name!r} below {store.uri} yet; {FRESH} the first time"
        ) from error


def open_base(store: Store, reference: str, digest: str) -> Base:
    """Reads the base's manifest, transforms and settings.

    Raises:
        NotFoundError: there is no such dataset, or no record of how it was built.
        RequestError: it is of a kind that cannot grow.
        DamagedError: manifest, vocabularies or record are damaged.
    """
    try:
        manifest = read_manifest(store, manifest_path(digest))
    except NotFoundError as error:
        raise NotFoundError(f"dataset.base: there is no dataset {digest} below {store.uri}; {FRESH}") from error
    if not manifest.schema.fingerprints or not all(split.buckets for split in manifest.splits):
        why = "was built by a version that could not grow datasets" if manifest.schema.key else "has no key"
        raise RequestError(f"dataset.base {reference} ({digest[:16]}…) {why}, so it cannot grow; {FRESH}")
    try:
        transforms = FittedTransforms.from_json(manifest.transforms, lambda name: store.get(blob_path(name)))
    except NotFoundError as error:
        raise DamagedError(f"a vocabulary of dataset.base {reference} is missing ({error}); {FRESH}") from error
    record = _record(store, parse_reference(reference, store.uri).name, digest)
    return Base(manifest, transforms, _parsed(record["config"]), record)


def problems(base: Base, spec: DatasetSpec, planned: Plan) -> list[str]:
    """Why a table and its settings cannot become what the base is: everything that shapes rows must be as it was."""
    found = list(_settings(base.spec, spec))
    if not found:
        found += _features(base, planned)
    if not found:
        found += _columns(base, spec, planned)
    return found


def _settings(before: DatasetSpec, after: DatasetSpec) -> Iterator[str]:
    sides = [
        {
            "key": spec.key,
            "labels": spec.all_labels,
            "weight": spec.weight,
            "keep": spec.keep,
            # Of splits the order counts.
            "split": (spec.split, tuple(spec.split.fractions)),
        }
        for spec in (before, after)
    ]
    for name in sides[0]:
        if sides[0][name] != sides[1][name]:
            yield f"dataset.{name} is not what it was when the base was built; set it back, or {FRESH}"


def _features(base: Base, planned: Plan) -> Iterator[str]:
    """Features by column: fitted transforms are kept, so there can be no others, and no other options."""
    inputs = {one.column for one in base.transforms.features}
    for name in [name for name in planned.features if name not in inputs]:
        yield (
            f"column {name!r} is a feature that the base does not have; leave it out "
            f"(features: {{{name}: {{drop: true}}}}), or {FRESH}"
        )
    if missing := sorted(inputs - set(planned.features)):
        yield f"the base has the features {', '.join(missing)}, which are none here; {FRESH}"
        return
    kinds = {field.name: field.type for field in planned.schema}
    try:
        before = resolve_features(base.spec, kinds)
    except TableError as error:
        yield f"the base's features cannot be made of this table ({error}); {FRESH}"
        return
    for name in sorted(inputs):
        if name not in before or (changed := _changed(before[name], planned.features[name])):
            what = ", ".join(changed) if name in before else "type"
            yield f"feature {name!r}: {what} is not what it was when the base was built; set it back, or {FRESH}"


def _changed(before: ResolvedFeature, after: ResolvedFeature) -> list[str]:
    names = [field.name for field in dataclasses.fields(before)]
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def _columns(base: Base, spec: DatasetSpec, planned: Plan) -> Iterator[str]:
    """Stored columns, type by type: a key that was int32 cannot take int64."""
    made = dataset_schema(base.transforms, planned, spec.key).columns
    stored = base.manifest.schema.columns
    for name in dict.fromkeys(column.name for column in (*stored, *made) if (column in stored) != (column in made)):
        kinds = [next((column.dtype for column in side if column.name == name), "absent") for side in (stored, made)]
        yield f"column {name!r} is {kinds[0]} in the base, and would be {kinds[1]}: its type has changed; {FRESH}"


def _record(store: Store, name: str | None, digest: str) -> Mapping[str, Any]:
    """What a build that made the dataset wrote of itself."""
    for build in _builds(store, name, digest):
        record = read_record(store, build)
        if record.get("digest") == digest and "config" in record:
            return record
    raise NotFoundError(f"dataset.base: no record says how dataset {digest} was built; {FRESH}")


def _builds(store: Store, name: str | None, digest: str) -> Iterator[str]:
    """Builds that may have made the dataset, the one that its name points at first."""
    with suppress(NotFoundError):
        if name is not None and (pointer := read_pointer(store, name))["digest"] == digest:
            yield str(pointer["build"])
    yield from (Path(meta.path).stem for meta in store.list("builds"))


def _parsed(text: str) -> DatasetSpec:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            return config.load_dataset(file.name).dataset
        except MltrainError as error:
            raise RequestError(
                f"dataset.base: the settings that it was built with cannot be read by this version ({error}); {FRESH}"
            ) from error


def used_columns(planned: Plan, transforms: FittedTransforms) -> pa.Schema:
    """The source columns that a row is made of: what its fingerprint covers."""
    names = dict.fromkeys((*planned.identity.names, *planned.carried, *transforms.inputs))
    return pa.schema([planned.schema.field(name) for name in names])

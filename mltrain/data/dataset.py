"""Opening datasets, looking at them, and checking them."""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mltrain.data.cache import NodeCache
from mltrain.data.manifest import Manifest, manifest_path
from mltrain.data.publish import read_manifest, read_pointer, read_record
from mltrain.data.schema import Schema, column_names
from mltrain.data.shard import blob_path
from mltrain.data.shares import SequentialEpoch
from mltrain.data.source import ShardSource
from mltrain.data.verify import VerifyReport, verify
from mltrain.errors import DamagedError, MissingDependencyError, NotFoundError, RequestError
from mltrain.storage import Store, normalise, open_store
from mltrain.transforms import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a user named: a root, and a name, a digest, or both."""

    root: str
    name: str | None
    digest: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class Dataset:
    """A dataset in storage. Opening reads the manifest only. Picklable: workers open nothing again.

    Attributes:
        store: its root.
        manifest: what it holds.
        name: the name that it was opened by.
        build: id of the build behind it, where the name's pointer says so.
        cache: where shards of a remote root are kept on this node; the user's cache directory by default.
    """

    store: Store
    manifest: Manifest
    name: str | None = None
    build: str | None = None
    cache: NodeCache | None = None

    @classmethod
    def open(
        cls,
        reference: str | Path,
        *,
        root: str | Path | None = None,
        cache: NodeCache | None = None,
        deadline_s: float = 120.0,
    ) -> "Dataset":
        """Opens a dataset.

        Args:
            reference: ``<root>/datasets/<name>``, ``<root>/shards/<digest>`` or, with ``root``, ``name``,
                ``name@digest`` or a digest.
            root: where datasets lie: a URI or a path.
            cache: where shards of a remote root are kept on this node.
            deadline_s: how long storage may fail before an error.

        Raises:
            NotFoundError: there is no such dataset.
            RequestError: not a reference to a dataset.
            DamagedError: its manifest is damaged, or missing although a name points at it.
        """
        wanted = parse_reference(str(reference), root)
        store = open_store(wanted.root, deadline_s=deadline_s)
        digest, build = wanted.digest, None
        if wanted.name is not None:
            pointer = _pointer(store, wanted.name)
            digest = digest or str(pointer["digest"])
            build = str(pointer["build"]) if pointer["digest"] == digest else None
        if digest is None:
            raise RequestError(f"{reference} names neither a dataset nor a digest")
        try:
            manifest = read_manifest(store, manifest_path(digest))
        except NotFoundError as error:
            if build is not None:
                raise DamagedError(
                    f"the manifest of dataset {wanted.name} is missing below {store.uri} ({error}); build it again"
                ) from error
            raise NotFoundError(
                f"no dataset with digest {digest} below {store.uri}; `mltrain dataset show` a name to see its digest"
            ) from error
        return cls(store, manifest, wanted.name, build, cache)

    @classmethod
    def resolve(
        cls, root: str | Path, reference: str, *, cache: NodeCache | None = None, deadline_s: float = 120.0
    ) -> "Dataset":
        """``open`` with the root first: what an experiment's ``root`` and ``dataset`` say."""
        return cls.open(reference, root=root, cache=cache, deadline_s=deadline_s)

    @property
    def digest(self) -> str:
        """Identity of content and layout, 64 hex digits."""
        return self.manifest.digest

    @property
    def schema(self) -> Schema:
        """Columns; what model factories receive."""
        return self.manifest.schema

    @property
    def transforms(self) -> Mapping[str, Any]:
        """The fitted transforms, as plain data."""
        return self.manifest.transforms

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(split.name for split in self.manifest.splits)

    @property
    def uri(self) -> str:
        """Where the manifest lies."""
        return self.store.join(f"shards/{self.digest}")

    def vocabulary(self, column: str) -> pa.Array:
        """What the ids of a categorical or id_list column stand for; ``vocabulary(name).take(ids)`` are their values.

        Args:
            column: name of the feature.

        Returns:
            [cardinality], string or int64: element ``i`` is the value of id ``i``, null for id 0 (unseen or missing).
            Bools are 0 and 1, dates days since 1970-01-01, timestamps microseconds since 1970-01-01 UTC.

        Raises:
            RequestError: there is no such column, or it has no vocabulary.
            DamagedError: the vocabulary is damaged, or missing in storage.
        """
        name = self.schema.column(column).vocabulary if column in self.schema else None
        stored = self.transforms.get("vocabularies", {}).get(name)
        if stored is None:
            known = [one.name for one in self.schema.features if one.vocabulary]
            what = f"a {self.schema.column(column).kind} column" if column in self.schema else "no column"
            raise RequestError(f"{column!r} is {what} of the dataset and has no vocabulary; these have one: {known}")

        def blob(content: str) -> bytes:
            try:
                return self.store.get(blob_path(content))
            except NotFoundError as error:
                raise DamagedError(f"vocabulary {name!r} is missing: {error}; build the dataset again") from error

        terms = Vocabulary.from_json(stored, blob).terms
        return pa.concat_arrays([pa.nulls(1, terms.type), terms])

    def rows(self, split: str) -> int:
        """Rows of a split.

        Raises:
            RequestError: there is no such split.
        """
        self.check_split(split)
        return self.manifest.split(split).rows

    def check_split(self, split: str) -> None:
        """Refuses a split that the dataset lacks.

        Raises:
            RequestError: there is no such split.
        """
        if split not in self.splits:
            raise RequestError(f"dataset {self.name or self.digest} has no split {split!r}; it has {list(self.splits)}")

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """The record of the build: Delta table and version, code, times. Empty if no build of this digest left one."""
        if self.build is not None:
            return read_record(self.store, self.build)
        records = (read_record(self.store, Path(meta.path).stem) for meta in self.store.list("builds"))
        return next((record for record in records if record.get("digest") == self.digest), {})

    @functools.cached_property
    def source(self) -> ShardSource:
        """Opens shards; shared by all readers of this object."""
        return ShardSource(self.store, self.schema, self.manifest.index, self.cache)

    def read(
        self, split: str, columns: Iterable[str] | None = None, *, start: int = 0, stop: int | None = None
    ) -> pa.Table:
        """Rows of a split in canonical order, as stored: encoded features, carried columns as they were.

        Args:
            split: name of the split.
            columns: which; all by default, keys first.
            start: first canonical row.
            stop: end; all rows by default.

        Raises:
            RequestError: no such split, column or row.
            DamagedError: a shard is damaged.
        """
        total = self.rows(split)
        start, stop = _row(start, "start"), total if stop is None else _row(stop, "stop")
        names = column_names(columns) if columns is not None else self._column_names()
        unknown = [name for name in names if name not in self.schema]
        if unknown:
            raise RequestError(f"the dataset has no column {unknown[0]!r}; it has {list(self._column_names())}")
        where = self.manifest.shards(split)
        order = SequentialEpoch(self.manifest.index.rows[where], max(1, total))
        # Without a column there would be no rows to count: the first one is read instead, and left out.
        read = names or self._column_names()[:1]
        tables = [
            self.source.shard(where.start + segment.shard).table(read).slice(segment.rows.start, segment.count)
            for segment in order.segments(start, min(stop, total))
            if isinstance(segment.rows, slice)
        ]
        if tables:
            return pa.concat_tables(tables).select(range(len(names)))
        return pa.table({name: [] for name in names})

    def to_pandas(self, split: str, *, rows: int | None = None, columns: Iterable[str] | None = None) -> "pd.DataFrame":
        """The first rows of a split: a random sample, since rows are scattered by the hash of their key.

        Args:
            split: name of the split.
            rows: how many; all by default.
            columns: which; all by default, keys first.

        Raises:
            RequestError: no such split or column.
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("to_pandas needs pandas: pip install 'mltrain[notebook]'") from error
        return self.read(split, columns, stop=None if rows is None else _row(rows, "rows")).to_pandas()

    def verify(self, progress: Callable[[str], None] | None = None) -> VerifyReport:
        """Reads and hashes everything again, from storage and not from the cache; says what is damaged."""
        return verify(self.store, self.manifest, progress)

    def summary(self) -> dict[str, Any]:
        """What ``dataset show`` prints, as plain data: schema, splits, provenance and statistics."""
        index = self.manifest.index
        splits = {}
        for split in self.manifest.splits:
            where = self.manifest.shards(split.name)
            statistics = {
                name: {**dataclasses.asdict(column), "mean": column.mean} for name, column in split.statistics.items()
            }
            splits[split.name] = {
                "rows": split.rows,
                "shards": split.shards,
                "size_bytes": int(index.size_bytes[where].sum()),
                "lanes": split.lanes,
                "window": split.window,
                "multiset": f"{split.multiset:032x}",
                "statistics": statistics,
            }
        return {
            "name": self.name,
            "digest": self.digest,
            "uri": self.uri,
            "build": self.build,
            "schema": self.schema.to_json(),
            "splits": splits,
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        rows = ", ".join(f"{split.name} {split.rows:,}" for split in self.manifest.splits)
        name = f"{self.name!r}, " if self.name else ""
        return f"Dataset({name}{self.digest[:12]}, {rows} rows)"

    def _column_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in (*self.schema.carried, *self.schema.select("label", "weight", "feature")))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def parse_reference(reference: str, root: str | Path | None = None) -> Reference:
    """Splits what a user named into root, name and digest.

    Raises:
        RequestError: not a reference to a dataset, or one that needs a root.
    """
    place, _, digest = reference.partition("@") if "@" in reference.rsplit("/", 1)[-1] else (reference, "", "")
    if digest and not _DIGEST.fullmatch(digest):
        raise RequestError(f"dataset {reference!r}: {digest!r} is not a digest (64 hex digits)")
    if "/" not in place:
        if root is None:
            raise RequestError(
                f"dataset {reference!r} needs a root: give root=, or the whole URI <root>/datasets/<name>"
            )
        if _DIGEST.fullmatch(place):
            return Reference(normalise(root), None, place)
        if not _NAME.fullmatch(place):
            raise RequestError(f"{reference!r} is not the name of a dataset (letters, digits, '.', '_', '-')")
        return Reference(normalise(root), place, digest or None)
    place = normalise(place).removesuffix("/manifest.json")
    base, _, last = place.rpartition("/")
    if base.endswith("/datasets"):
        return Reference(base.removesuffix("/datasets"), last.removesuffix(".json"), digest or None)
    if base.endswith("/shards") and _DIGEST.fullmatch(last):
        return Reference(base.removesuffix("/shards"), None, last)
    raise RequestError(f"{reference!r} is neither <root>/datasets/<name> nor <root>/shards/<digest>")


def _row(number: Any, what: str) -> int:
    try:
        row = operator.index(number)
    except TypeError:
        row = -1
    if row < 0:
        raise RequestError(f"{what}={number!r}: wanted a number of rows, 0 or more")
    return row


def _pointer(store: Store, name: str) -> dict[str, Any]:
    try:
        return read_pointer(store, name)
    except NotFoundError as error:
        known = [Path(meta.path).stem for meta in store.list("datasets")]
        hint = f"there are {known}" if known else "there is none; `mltrain dataset build -c FILE` makes one"
        raise NotFoundError(f"no dataset named {name!r} below {store.uri}; {hint}") from error

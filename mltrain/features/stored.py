"""What a Parquet file says of its columns, and whether that is certain to mean what Spark would read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# The first versions of Spark that write dates, and timestamps of 96 bits, in today's calendar.
_CALENDAR, _CALENDAR_INT96 = (3, 0), (3, 1)


@dataclass(frozen=True)
class Stored:
    """What a file says of its columns.

    Attributes:
        fields: as Arrow sees them, by name.
        alike: names of columns by their lower case.
        leaves: Parquet's columns by the name of the column that they are part of.
        said: the file's own metadata.
    """

    fields: Mapping[str, pa.Field]
    alike: Mapping[str, Sequence[str]]
    leaves: Mapping[str, Sequence[Any]]
    said: Mapping[bytes, bytes]

    @classmethod
    def of(cls, file: pq.ParquetFile) -> "Stored":
        arrow, schema = file.schema_arrow, file.schema
        alike: dict[str, list[str]] = {}
        for name in arrow.names:
            alike.setdefault(name.lower(), []).append(name)
        leaves: dict[str, list[Any]] = {}
        names = set(arrow.names)
        for leaf in (schema.column(i) for i in range(len(schema.names))):
            leaves.setdefault(_owner(leaf.path, names), []).append(leaf)
        return cls({field.name: field for field in arrow}, alike, leaves, file.metadata.metadata or {})

    def problem(self, field: pa.Field, todays_calendar: bool) -> str | None:
        """Why it is not certain that a column of the file means what Spark takes it for.

        Args:
            field: the table's column; one that the file lacks is null there.
            todays_calendar: so are dates in a file that does not say which calendar they are of.
        """
        alike = self.alike.get(field.name.lower())
        if not alike:
            return None
        if alike != [field.name]:
            return f"is there as {', '.join(alike)}"
        leaves = self.leaves.get(field.name, ())
        if len(leaves) != 1:
            return "is nested"
        leaf = leaves[0]
        kind, wanted, shape = self.fields[field.name].type, field.type, leaf.path[len(field.name) :]
        if pa.types.is_list(wanted):
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not shape.startswith(".list."):
                return f"is stored as {kind}"
            kind, wanted = kind.value_type, wanted.value_type
        elif shape:
            return "is nested"
        if leaf.physical_type == "INT96":
            if wanted != pa.timestamp("us", "UTC") or pa.types.is_list(field.type):
                return "holds timestamps of 96 bits"
        elif _plain(kind) != wanted:
            return f"is stored as {kind}"
        if pa.types.is_temporal(wanted) and not _of_today(self.said, leaf.physical_type == "INT96", todays_calendar):
            return "may hold dates of a calendar of the past"
        return None


def _owner(path: str, names: Collection[str]) -> str:
    """The column that a Parquet column is part of, whose name may have dots, too; the longest name where several fit.

    A column ``a.b`` and a part ``b`` of a column ``a`` have one path: both then count as parts of ``a.b``, so neither
    column has the one part that it should have.
    """
    end = len(path)
    while end > 0 and path[:end] not in names:
        end = path.rfind(".", 0, end)
    return path[:end] if end > 0 else path


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that Spark knows, of those that Arrow has for the same values."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_large_string(kind) or kind == pa.string_view():
        return pa.string()
    if pa.types.is_large_binary(kind) or kind == pa.binary_view():
        return pa.binary()
    if pa.types.is_timestamp(kind) and kind.unit in ("ms", "us"):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    return kind


def _of_today(said: Mapping[bytes, bytes], int96: bool, otherwise: bool) -> bool:
    version = said.get(b"org.apache.spark.version")
    if version is None:
        return otherwise
    major, minor = (int(part) for part in version.split(b".")[:2])
    legacy = b"org.apache.spark.legacyINT96" if int96 else b"org.apache.spark.legacyDateTime"
    return (major, minor) >= (_CALENDAR_INT96 if int96 else _CALENDAR) and legacy not in said

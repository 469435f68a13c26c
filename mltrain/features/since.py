"""What became of a table since the base was built of it, by reading as little as is certain to tell.

At best only files are read that one of the two versions lacks; otherwise all files, by tasks; otherwise Spark scans.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from mltrain.features.compare import Growth, Ranges, differences, summary
from mltrain.features.files import Listing, changes, list_files
from mltrain.features.inherit import Base
from mltrain.features.parquet import UnreadableError, unreadable
from mltrain.features.plan import Plan
from mltrain.features.rows import Rows
from mltrain.features.table import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Since:
    """What became of a table.

    Attributes:
        rows: those that were compared.
        found: what differs, from :func:`~mltrain.features.compare.differences`.
        growth: the same in numbers.
        compared: what was: ``changed files``, ``all files`` or ``all rows``.
        reasons: why it was not less.
        files: of the table, if tasks can read them: :attr:`~mltrain.features.files.Listing.digest`.
    """

    rows: Rows
    found: DataFrame
    growth: Growth
    compared: str
    reasons: tuple[str, ...]
    files: str | None


@dataclass(frozen=True)
class _Way:
    """One way to read a table."""

    compared: str
    rows: Rows
    removed: Rows | None
    files: str | None


@contextmanager
def since(
    source: Source, planned: Plan, table: Rows, base: Base, ranges: Ranges, *, deadline_s: float
) -> Iterator[Since]:
    """Compares a table with the dataset that is to grow; what it finds is kept while the context lasts.

    Args:
        source: the table.
        planned: what becomes of its columns.
        table: its rows, with the position of the split and the fingerprint.
        base: the dataset.
        ranges: of the base.
        deadline_s: how long a read of storage is retried.
    """
    reasons: list[str] = []
    checks = planned.checks
    for way in _ways(source, planned, table, base, ranges, reasons, deadline_s):
        found = differences(way.rows, way.removed, ranges, checks).persist()
        try:
            try:
                growth = summary(found, ranges, len(checks), whole=way.removed is None)
            except PySparkException as error:
                if way.rows.files is None or (reason := unreadable(error)) is None:
                    raise
                log.info("not only %s are read: %s", way.compared, reason)
                reasons.append(reason)
                continue
            yield Since(way.rows, found, growth, way.compared, tuple(reasons), way.files)
            return
        finally:
            found.unpersist()


def _ways(
    source: Source, planned: Plan, table: Rows, base: Base, ranges: Ranges, reasons: list[str], deadline_s: float
) -> Iterator[_Way]:
    """Ways to read the table, the cheapest first; why one is left out is added to ``reasons``."""
    files = None
    try:
        listing = list_files(source.frame, planned.schema, deadline_s=deadline_s)
        files = listing.digest
        whole = table.with_files(listing.read_by_tasks(source.frame.sparkSession, planned.used()))
    except UnreadableError as error:
        reasons.append(str(error))
    else:
        try:
            yield _changed(source, planned, table, base, ranges, listing, deadline_s)
        except UnreadableError as error:
            reasons.append(str(error))
        yield _Way("all files", whole, None, files)
    log.info("Spark's scan reads the table, which is slower: %s", reasons[-1])
    yield _Way("all rows", table, None, files)


def _changed(
    source: Source,
    planned: Plan,
    table: Rows,
    base: Base,
    ranges: Ranges,
    listing: Listing,
    deadline_s: float,
) -> _Way:
    """Reads the files that only one of the versions has.

    Raises:
        UnreadableError: it is not certain which they are, or they are more than the table.
    """
    before = base.record["table"]
    if ranges.lost:
        raise UnreadableError("shards of the base are lost")
    if before["id"] != source.table_id:
        raise UnreadableError("the base was built from another table")
    spark, columns = source.frame.sparkSession, planned.used()
    found = changes(spark, listing, before["version"], base.record.get("files"), columns, deadline_s=deadline_s)
    if found.cost_bytes >= listing.size_bytes:
        raise UnreadableError("as much of the table has changed")
    narrow = {*ranges.identity.names, *([planned.split] if planned.split else [])}
    removed = found.removed.read_by_tasks(spark, tuple(narrow))
    added = found.added.read_by_tasks(spark, columns)
    return _Way("changed files", table.with_files(added), table.with_files(removed), listing.digest)

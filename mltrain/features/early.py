"""Refusing a table by its Delta log alone, in the second before Spark takes its twenty to start."""

import json
import logging

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyspark.errors import PySparkException
from pyspark.sql.types import StructType

from mltrain.config import DatasetSpec
from mltrain.errors import NotFoundError
from mltrain.features.plan import plan
from mltrain.features.problems import refuse
from mltrain.features.table import arrow_schema, described, no_table
from mltrain.storage import delta_options

log = logging.getLogger(__name__)


def refuse_early(spec: DatasetSpec) -> None:
    """Refuses what names and types of the table's columns rule out.

    The log holds the schema as Spark writes it, and Spark's own classes read it here, so both sides see one schema.
    What this cannot read (names of a catalog, versions by time, newer tables), Spark looks at later.

    Raises:
        NotFoundError: there is no table.
        TableError: it cannot become this dataset; every reason is named.
    """
    if "/" not in spec.table or spec.timestamp is not None:
        return
    try:
        table = DeltaTable(spec.table, version=spec.version, storage_options=delta_options(spec.table))
        version, schema = table.version(), StructType.fromJson(json.loads(table.schema().to_json()))
    except TableNotFoundError as error:
        raise NotFoundError(no_table(spec.table)) from error
    except (DeltaError, PySparkException, OSError, ValueError) as error:
        log.debug("%s is not looked at before Spark starts: %s", spec.table, error)
        return
    subject = described(spec.table, version)
    refuse(subject, plan(spec, *arrow_schema(schema))[1])

"""Whether a row of a table is what it was: a hash of the source values that it was made from, computed by Spark.

Growth compares fingerprints of a later table with those that shards keep. They are computed nowhere else, and never
reach a digest.
"""

import numpy as np
import pyarrow as pa

from mltrain.data import keys
from mltrain.errors import TableError
from mltrain.features.derived import Derived, row_hash
from mltrain.features.sql import column

_DOMAIN = "mltrain/fingerprint"


def fingerprint(used: pa.Schema) -> Derived:
    """The fingerprint of a row, a long, from the columns that it is made from, in any order.

    Rows that differ in a value have different fingerprints, but for one pair in 2**64, and for 0.0 and -0.0, which
    count as equal.
    """
    fields = sorted(used, key=lambda field: field.name)
    plain = [field for field in fields if _hashable(field)]
    # The hash of a list skips nulls, so where they are is hashed too. Of other nested types Spark's JSON is hashed.
    lists = [field.name for field in plain if pa.types.is_nested(field.type)]
    extra = [f"transform({column(name)}, x -> x IS NULL)" for name in lists]
    extra += [f"to_json(named_struct('v', {column(field.name)}))" for field in fields if field not in plain]
    whole = row_hash(pa.schema(plain), domain=_DOMAIN, seed=0)
    if not extra:
        return whole

    def chained(rows: pa.RecordBatch) -> pa.Array:
        hashes = keys.hash_rows(rows.select([field.name for field in plain]), domain=_DOMAIN, seed=0)
        return pa.array(keys.chain(hashes, [rows.column(name) for name in lists]).view(np.int64))

    sql = f"xxhash64({', '.join([whole.sql, *extra])})"
    return Derived(sql, tuple(used.names), chained if len(plain) == len(fields) else None)


def _hashable(field: pa.Field) -> bool:
    try:
        keys.tag_of(field.name, field.type)
    except TableError:
        return False
    return True

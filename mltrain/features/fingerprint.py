"""Whether a row of a table is what it was: a hash of the source values that it was made from, computed by Spark.

Growth compares fingerprints of a later table with those that shards keep. They are computed nowhere else, and never
reach a digest.
"""

import numpy as np
import pyarrow as pa

from mltrain.data import keys
from mltrain.features.derived import Derived, row_hash
from mltrain.features.sql import column

_DOMAIN = "mltrain/fingerprint"


def fingerprint(used: pa.Schema) -> Derived:
    """The fingerprint of a row, a long, from the columns that it is made from, in any order.

    Rows that differ in a value have different fingerprints, but for one pair in 2**64, and for 0.0 and -0.0, which
    count as equal. No value passes through a text that may be shorter than it: timestamps count in microseconds.

    Raises:
        TableError: a type without a canonical encoding, which no column of a dataset has.
    """
    fields = pa.schema(sorted(used, key=lambda field: field.name))
    # The hash of a list skips nulls, so where they are is hashed too.
    lists = [field.name for field in fields if pa.types.is_nested(field.type)]
    whole = row_hash(fields, domain=_DOMAIN, seed=0)
    if not lists:
        return whole

    def chained(rows: pa.RecordBatch) -> pa.Array:
        hashes = keys.hash_rows(rows.select(fields.names), domain=_DOMAIN, seed=0)
        return pa.array(keys.chain(hashes, [rows.column(name) for name in lists]).view(np.int64))

    holes = (f"transform({column(name)}, x -> x IS NULL)" for name in lists)
    return Derived(f"xxhash64({', '.join([whole.sql, *holes])})", tuple(fields.names), chained)

"""Whether a row of a table is what it was: a hash of the source values that it was made from, computed by Spark.

Growth compares fingerprints of a later table with those that shards keep. They are computed nowhere else, and never
reach a digest.
"""

import pyarrow as pa

from mltrain.data import keys
from mltrain.errors import TableError
from mltrain.features.sql import column

_DOMAIN = "mltrain/fingerprint"


def fingerprint_sql(used: pa.Schema) -> str:
    """Spark SQL for the fingerprint of a row, a long, from the columns that it is made from, in any order.

    Rows that differ in a value have different fingerprints, but for one pair in 2**64, and for 0.0 and -0.0, which
    count as equal.
    """
    fields = sorted(used, key=lambda field: field.name)
    plain = [field for field in fields if _hashable(field)]
    # The hash of a list skips nulls, so where they are is hashed too. Of other nested types Spark's JSON is hashed.
    extra = [f"transform({column(field.name)}, x -> x IS NULL)" for field in plain if pa.types.is_nested(field.type)]
    extra += [f"to_json(named_struct('v', {column(field.name)}))" for field in fields if field not in plain]
    whole = keys.hash_sql(pa.schema(plain), domain=_DOMAIN, seed=0)
    return f"xxhash64({', '.join([whole, *extra])})" if extra else whole


def _hashable(field: pa.Field) -> bool:
    try:
        keys.tag_of(field.name, field.type)
    except TableError:
        return False
    return True

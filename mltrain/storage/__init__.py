"""Object storage and local directories behind one interface."""

from mltrain.config.uri import normalise, spark_uri
from mltrain.errors import ConflictError
from mltrain.storage.environment import delta_options, spark_options
from mltrain.storage.opening import open_store
from mltrain.storage.ranges import ObjectFile
from mltrain.storage.store import ObjectMeta, Store

__all__ = [
    "ConflictError",
    "ObjectFile",
    "ObjectMeta",
    "Store",
    "delta_options",
    "normalise",
    "open_store",
    "spark_options",
    "spark_uri",
]

"""Datasets: manifest, shards, order, cache, loader. No Spark, no Ray; torch only when a Loader is made."""

from mltrain.data.batch import Batch, Ragged
from mltrain.data.cache import NodeCache
from mltrain.data.dataset import Dataset
from mltrain.data.loader import Counters, Loader
from mltrain.data.manifest import Manifest, ShardEntry, assemble
from mltrain.data.publish import Build
from mltrain.data.schema import Column, Schema
from mltrain.data.shard import EncodedShard, write_shard
from mltrain.data.verify import VerifyReport

__all__ = [
    "Batch",
    "Build",
    "Column",
    "Counters",
    "Dataset",
    "EncodedShard",
    "Loader",
    "Manifest",
    "NodeCache",
    "Ragged",
    "Schema",
    "ShardEntry",
    "VerifyReport",
    "assemble",
    "write_shard",
]

"""Reading the keys and fingerprints of a shard in storage without fetching all of it."""

import io

import pyarrow as pa

from mltrain.data import keys
from mltrain.data.manifest import ShardEntry
from mltrain.data.schema import FINGERPRINT, Schema
from mltrain.data.shard import FINGERPRINT_FIELD, blob_path
from mltrain.errors import DamagedError, NotFoundError
from mltrain.storage import ObjectFile, Store

_READ_AHEAD_BYTES = 1 << 16


def read_identities(store: Store, schema: Schema, entry: ShardEntry) -> pa.Table:
    """Key columns of a shard and :data:`~mltrain.data.schema.FINGERPRINT`, by a few ranged reads.

    The file's checksum cannot be checked so. The keys are checked against the multiset hash that the manifest has; a
    fingerprint that is damaged makes its row look changed, and who encodes that again reads and checks the whole file.

    Args:
        store: the dataset's root.
        schema: of the dataset; it has a key and fingerprints.
        entry: the shard.

    Raises:
        DamagedError: the shard is missing or damaged.
    """
    path = blob_path(entry.blob)
    stored = {name: f"carried/{name}" for name in schema.key} | {FINGERPRINT: FINGERPRINT_FIELD.name}
    try:
        file = pa.PythonFile(io.BufferedReader(ObjectFile(store, path, entry.size_bytes), _READ_AHEAD_BYTES), mode="r")
        every = pa.ipc.open_file(file).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=sorted(every.index(name) for name in stored.values()))
        batch = pa.ipc.open_file(file, options=options).get_batch(0)
        table = pa.table({name: batch.column(field) for name, field in stored.items()})
    except NotFoundError as error:
        raise DamagedError(f"shard {store.join(path)} is missing; {_REPAIR}") from error
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DamagedError(f"shard {store.join(path)} cannot be read: {error}; {_REPAIR}") from error
    if keys.multiset(table.select(list(schema.key))) != entry.multiset:
        raise DamagedError(f"shard {store.join(path)} is damaged: its keys are not those of the manifest; {_REPAIR}")
    return table


_REPAIR = "`mltrain dataset verify` says what else is; build without dataset.base to repair it"

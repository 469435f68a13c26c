"""From a URI to the store that serves it."""

from pathlib import Path

from mltrain.config.uri import parse
from mltrain.storage.store import Store

DEADLINE_S = 120.0


def open_store(uri: str | Path, *, deadline_s: float = DEADLINE_S) -> Store:
    """Opens ``s3://``, ``s3a://``, ``gs://``, ``az://``, ``abfss://``, ``file://`` or a path. Does no I/O.

    Args:
        uri: the place; objects are named relative to it.
        deadline_s: how long one operation is retried before it fails.

    Raises:
        ConfigError: the URI is malformed or holds credentials.
    """
    place = parse(uri)
    if place.scheme == "file":
        from mltrain.storage.local import LocalStore

        return LocalStore(place.path)
    from mltrain.storage.remote import RemoteStore

    return RemoteStore(place, deadline_s)

"""Storage URIs: what is accepted, and how the engines spell the same place."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mltrain.errors import ConfigError

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "abfss": "abfss", "file": "file"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True)
class Location:
    """A place in storage.

    Attributes:
        scheme: s3, gs, az, abfss or file.
        bucket: the bucket; for az the container; for abfss ``container@account.host``; empty for file.
        path: the key prefix without slashes at its ends; for file the absolute path.
    """

    scheme: str
    bucket: str
    path: str

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.path
        return f"{self.scheme}://{self.bucket}/{self.path}" if self.path else f"{self.scheme}://{self.bucket}"


def parse(uri: str | Path) -> Location:
    """Reads a URI or a path.

    Raises:
        ConfigError: the scheme is unknown, the bucket is missing, or the URI holds credentials.
    """
    match = _SCHEME.fullmatch(str(uri))
    if match is None:
        return _local(str(uri))
    scheme, rest = match[1].lower(), match[2]
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"storage {str(uri)!r}: scheme {scheme!r} is not supported; "
            "want s3://, s3a://, gs://, az://, abfss://, file:// or a path"
        )
    scheme = _SCHEMES[scheme]
    _refuse_credentials(scheme, rest)
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(f"storage {str(uri)!r}: a file URI holds an absolute path, as in file:///data/ml")
        return _local(rest)
    bucket, _, path = rest.partition("/")
    if not bucket:
        raise ConfigError(f"storage {str(uri)!r} names no bucket; want {scheme}://BUCKET/PREFIX")
    if scheme == "abfss" and not re.fullmatch(r"[^@]+@[^@.]+\..+", bucket):
        raise ConfigError(f"storage {str(uri)!r}: want abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX")
    segments = [segment for segment in path.split("/") if segment]
    if any(segment in (".", "..") for segment in segments):
        raise ConfigError(f"storage {str(uri)!r}: '.' and '..' mean nothing in object storage")
    return Location(scheme, bucket, "/".join(segments))


def _local(path: str) -> Location:
    if not path:
        raise ConfigError("storage '' is empty; want a path or a URI such as s3://bucket/prefix")
    return Location("file", "", os.path.abspath(os.path.expanduser(path)))


def _refuse_credentials(scheme: str, rest: str) -> None:
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if (at and (scheme != "abfss" or ":" in user)) or "?" in rest:
        # The URI is not repeated: messages end up in logs.
        raise ConfigError(
            f"a {scheme}:// URI holds credentials or a query; give credentials through the environment "
            "(AWS_*, GOOGLE_*, AZURE_*) or the instance's role, and take them out of the URI"
        )


def normalise(uri: str | Path) -> str:
    """The one spelling of a place: ``s3a://`` becomes ``s3://``, a path absolute; no slash at the end."""
    return str(parse(uri))


def spark_uri(uri: str | Path) -> str:
    """What Spark opens: ``s3a://…``, ``abfss://…``, ``file:///…``.

    Raises:
        ConfigError: an ``az://`` URI while AZURE_STORAGE_ACCOUNT_NAME is not set.
    """
    place = parse(uri)
    if place.scheme == "file":
        return f"file://{place.path}"
    if place.scheme == "s3":
        return f"s3a{str(place)[2:]}"
    if place.scheme == "az":
        host = f"{azure_account(str(place))}.dfs.core.windows.net"
        return str(Location("abfss", f"{place.bucket}@{host}", place.path))
    return str(place)


def azure_account(uri: str) -> str:
    """The account of an ``az://`` URI, which does not name it.

    Raises:
        ConfigError: the environment does not either.
    """
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise ConfigError(f"storage {uri!r} names no account; set AZURE_STORAGE_ACCOUNT_NAME, or use abfss://")
    return account

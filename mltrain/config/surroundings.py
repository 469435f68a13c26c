"""Models of what surrounds the work and does not change its result."""

import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from mltrain.config.strict import NaturalFloat, NaturalInt, PositiveFloat, Strict

# Of a Ray label, as of one of Kubernetes: a name, after a DNS subdomain and a slash if need be.
_LABEL = r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"


class StorageConfig(Strict):
    """How patient reads and writes are."""

    deadline_s: PositiveFloat = 120.0
    """How long one operation on storage is retried before it fails, in seconds."""


class CacheConfig(Strict):
    """Each node's copy of shards that live in object storage."""

    path: str = "~/.cache/mltrain/shards"
    """Directory; `~` is each node's own home."""
    budget_bytes: NaturalInt = 34_359_738_368
    """The least recently used shards go when the cache is larger than this."""

    @property
    def directory(self) -> Path:
        """``path`` on this node, whose ``$XDG_CACHE_HOME``, where it is set, is what ``~/.cache`` stands for."""
        below_cache = self.path.removeprefix("~/.cache/")
        if below_cache != self.path and os.environ.get("XDG_CACHE_HOME"):
            return Path(os.environ["XDG_CACHE_HOME"], below_cache)
        return Path(self.path).expanduser()


class Notices(Strict):
    """Who says that a node goes away. A word is the source: `cluster.notices: off`."""

    source: Literal["auto", "off", "aws", "gcp", "azure", "kubernetes", "file", "http"] = "auto"
    """`auto`: each node finds out in which cloud it is, and whether in Kubernetes; `off`: nobody is listened to."""
    address: str | None = None
    """Of `file` and `http`: the path or the URL, in which `{address}` is the node's IP address. Of the others: where
    they are, if not at their usual place."""

    @model_validator(mode="before")
    @classmethod
    def _a_word(cls, given: Any) -> Any:
        return {"source": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.source in ("auto", "off"):
            if self.address is not None:
                raise ValueError(f"address {self.address!r} does not go with source {self.source}")
        elif self.source in ("file", "kubernetes"):
            if self.address is None and self.source == "file":
                raise ValueError("source file needs address, an absolute path on the nodes")
            if self.address is not None and not self.address.startswith("/"):
                raise ValueError(f"address {self.address!r}: want an absolute path, as each node has it")
        elif self.address is None and self.source == "http":
            raise ValueError("source http needs address, a URL")
        elif self.address is not None and not _is_url(self.address):
            raise ValueError(
                f"address {self.address!r}: want http://host or https://host, with a port or path if need be"
            )
        return self


class Market(Strict):
    """Which nodes workers are placed on, by how they are paid for. A word is `workers`: `cluster.market: spot`."""

    workers: Literal["any", "spot", "on-demand", "spot-then-on-demand"] = "any"
    """`spot`, `on-demand`: only nodes whose label says so. `spot-then-on-demand`: spot nodes; while these stay away,
    on-demand nodes stand in."""
    wait_s: NaturalFloat = 300.0
    """How long spot nodes have to stay away before on-demand nodes stand in, in seconds."""
    label: str = Field(default="ray.io/market-type", pattern=_LABEL)
    """The label by which Ray's nodes say that they are `spot` or `on-demand`."""

    @model_validator(mode="before")
    @classmethod
    def _a_word(cls, given: Any) -> Any:
        return {"workers": given} if isinstance(given, str) else given


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False

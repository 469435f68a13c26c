"""Models of what surrounds the work and does not change its result."""

import os
from pathlib import Path

from mltrain.config.strict import NaturalInt, PositiveFloat, Strict


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

"""The user's cache: what takes minutes is built once, under a name that says its content."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def directory() -> Path:
    """``$XDG_CACHE_HOME/mltrain``, by default ``~/.cache/mltrain``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mltrain"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the kernel's lock on a file or directory; it is free again when this process ends, however it ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached directory ``name``, which ``build`` fills if it does not exist yet.

    One process builds while others wait. The directory appears under its name when it is complete.
    """
    target = directory() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent / f"{target.name}.lock"
    lock.touch()
    with locked(lock):
        if not target.exists():
            partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
            try:
                build(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def digest(files: Iterable[Path], *facts: str) -> str:
    """A short name for the content of ``files``, in their order, and ``facts``."""
    content = hashlib.sha256()
    for file in files:
        content.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    content.update("\0".join(facts).encode())
    return content.hexdigest()[:16]

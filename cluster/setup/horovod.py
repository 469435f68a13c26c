"""The patched Horovod wheel (cluster/horovod), built once for each content of its files, torch, Python and platform."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.setup import cache
from cluster.setup.checkout import ROOT, locked_version, run

if TYPE_CHECKING:
    from cluster.setup.prerequisites import Python

_SOURCES = ROOT / "cluster" / "horovod"


class Wheel:
    """A wheel for one Python, with or without NCCL. ``name`` says its content, before it is built."""

    def __init__(self, python: Python, *, nccl: bool) -> None:
        self._nccl = nccl
        files = sorted(path for path in _SOURCES.rglob("*") if path.suffix in {".sh", ".patch", ".txt"})
        facts = [locked_version("torch"), "{}.{}".format(*python.version), platform.machine(), *platform.libc_ver()]
        if nccl:
            facts.append(os.environ.get("HOROVOD_BUILD_CUDA_CC_LIST", ""))
        self.name = f"horovod-{'nccl' if nccl else 'gloo'}-{cache.digest(files, *facts)}"

    def get(self, environment: Path, uv: Path) -> Path:
        """The wheel, built in a virtual environment that holds the lock file if the cache has none."""

        def build(directory: Path) -> None:
            print("setup: building Horovod, 2-3 minutes", file=sys.stderr)
            if self._nccl:
                target = ("--python", environment / "bin" / "python")
                run(uv, "pip", "install", "-q", *target, "--no-deps", "--require-hashes", "-r", _SOURCES / "nccl.txt")
            run(_SOURCES / ("build-nccl.sh" if self._nccl else "build.sh"), environment, directory)

        (found,) = cache.build_once(self.name, build).glob("horovod-*.whl")
        return found

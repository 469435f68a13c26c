"""The virtual environments of a checkout, made by a pinned uv from the lock file."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.setup import cache
from cluster.setup.checkout import LOCK, ROOT, run

if TYPE_CHECKING:
    from cluster.setup.horovod import Wheel
    from cluster.setup.prerequisites import Python

_UV = Path(__file__).with_name("uv.txt")


def uv(python: Python) -> Path:
    """The pinned uv, from the cache."""

    def install(directory: Path) -> None:
        bootstrap = directory / "bootstrap"
        run(python.executable, "-m", "venv", bootstrap)
        run(bootstrap / "bin" / "python", "-m", "pip", "install", "-q", "--require-hashes", "-r", _UV)
        (bootstrap / "bin" / "uv").rename(directory / "uv")
        shutil.rmtree(bootstrap)

    return cache.build_once(f"uv-{cache.digest([_UV])}", install) / "uv"


def lock(python: Python) -> None:
    """Resolves setup.cfg and the packages of Horovod's NCCL build, for every supported Python, with hashes."""
    sources = ROOT / "cluster" / "horovod"
    flags = ["--universal", "--python-version", "3.11", "--generate-hashes", "--custom-compile-command", "make lock"]
    run(uv(python), "pip", "compile", "-q", *flags, "setup.cfg", "--extra", "dev", "-o", LOCK)
    run(uv(python), "pip", "compile", "-q", *flags, sources / "nccl.in", "-c", LOCK, "-o", sources / "nccl.txt")


def make(path: Path, python: Python, horovod: Wheel | None) -> None:
    """Makes an environment hold what the lock file lists, Horovod if asked for, and this checkout's mltrain.

    Nothing is done when it holds that already.
    """
    inputs = [LOCK, ROOT / "setup.cfg", ROOT / "pyproject.toml"]
    wanted = cache.digest(inputs, python.executable, str(ROOT), horovod.name if horovod else "without Horovod")
    stamp = path / "mltrain-setup"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setup: {path.name} from {LOCK.name}", file=sys.stderr)
    command = uv(python)
    stamp.unlink(missing_ok=True)
    settings = path / "pyvenv.cfg"
    home = f"home = {Path(python.executable).parent}"
    if not settings.exists() or home not in settings.read_text().splitlines():
        run(command, "venv", "-q", "--clear", "--python", python.executable, path)
    # Compiled here: with PYTHONDONTWRITEBYTECODE, as in many images, every worker would compile torch as it starts.
    flags = ("-q", "--python", path / "bin" / "python", "--compile-bytecode")
    run(command, "pip", "sync", *flags, "--require-hashes", LOCK)
    wheels = [horovod.get(path, command)] if horovod else []
    run(command, "pip", "install", *flags, "--no-deps", "--no-build-isolation", *wheels, "-e", ROOT)
    stamp.write_text(wanted)

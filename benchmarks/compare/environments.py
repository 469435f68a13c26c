"""The environment of each tool: its own, of pinned packages, made once by the project's uv."""

import shutil
import sys
from pathlib import Path

from cluster.setup import cache, checkout, environments, prerequisites

_REQUIREMENTS = Path(__file__).with_name("requirements")
_PYTHON = (3, 11)


def interpreter(tool: str, base: Path) -> Path:
    """The Python that runs a tool: this one where there is no requirements file for it.

    Args:
        tool: name of the tool.
        base: where environments are made, and found again.

    Raises:
        SystemExit: this machine has no Python 3.11.
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    requirements = _REQUIREMENTS / f"{tool}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    found = prerequisites.pythons(_PYTHON)
    if not found:
        raise SystemExit("the other tools are pinned for Python 3.11, which this machine does not have")
    uv, python = environments.uv(found[0]), found[0].executable
    path = base / f"{tool}-{cache.digest([requirements], python)}"
    stamp = path / "complete"
    base.mkdir(parents=True, exist_ok=True)
    with cache.locked(base):
        if not stamp.exists():
            print(f"making {path}", file=sys.stderr)
            shutil.rmtree(path, ignore_errors=True)
            checkout.run(uv, "venv", "-q", "--python", python, path)
            checkout.run(
                uv, "pip", "sync", "-q", "--compile-bytecode", "--python", path / "bin" / "python", requirements
            )
            stamp.touch()
    return path / "bin" / "python"

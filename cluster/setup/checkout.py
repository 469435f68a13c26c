"""The checkout that is set up: its root, its lock file, and steps that run from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"


def run(*command: str | Path, **environment: str) -> None:
    """Runs a step from the root of the checkout, its output on stderr.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    fixed = {"UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    words = [str(word) for word in command]
    subprocess.run(words, check=True, stdout=sys.stderr, cwd=ROOT, env={**os.environ, **fixed, **environment})


def locked_version(package: str) -> str:
    """The version of a package in the lock file."""
    for line in LOCK.read_text().splitlines():
        name, _, rest = line.partition("==")
        if name == package:
            return rest.split()[0]
    raise LookupError(f"{LOCK.name} does not hold {package}: run `make lock`")

"""The S3 server of the tests: versitygw, built from its Go module once."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.setup import cache
from cluster.setup.checkout import run

VERSION = "v1.8.0"


def install() -> Path:
    """The program; ``tests/support/s3.py`` knows where it is."""

    def build(directory: Path) -> None:
        print("setup: building the S3 server of the tests, 1 minute", file=sys.stderr)
        run("go", "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSION}", GOBIN=str(directory))

    return cache.build_once(f"versitygw-{VERSION}", build) / "versitygw"

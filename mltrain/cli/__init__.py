"""The ``mltrain`` command."""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line, by default this process's own, and exits with its code."""
    from mltrain.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else arguments))

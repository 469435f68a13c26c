"""From a Delta Lake table to a trained, evaluated, recorded model on preemptible GPU nodes.

Subpackages load on first use, so that ``import mltrain`` is fast and starts none of the engines.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = frozenset({"collectives", "config", "data", "errors", "evaluate", "features", "models"})
_SUBPACKAGES |= {"results", "storage", "train", "transforms", "tune"}


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBPACKAGES])

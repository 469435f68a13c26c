"""From a Delta table to a dataset, with Spark: profile, validate, split, fit, scatter. Executors need no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrain.features.build import BuildReport, build
    from mltrain.features.session import session

__all__ = ["BuildReport", "build", "session"]

# On first use, so that `mltrain.features.packages` needs no Spark.
_MODULES = {"BuildReport": "build", "build": "build", "session": "session"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

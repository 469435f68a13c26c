"""From a Delta table to a dataset, with Spark: profile, validate, split, fit, scatter. Executors need no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrain.features.engine import session
    from mltrain.features.job import BuildReport, build

__all__ = ["BuildReport", "build", "session"]

# On first use, so that `mltrain.features.packages` needs no Spark. No module has the name of what it offers here:
# importing it would put the module in that place.
_MODULES = {"BuildReport": "job", "build": "job", "session": "engine"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""A sweep as the runs table has it: its objective, its space, and what each of its trials set."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ruamel.yaml import YAML


def config_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The config that a row of the runs table holds, as plain data."""
    return dict(YAML(typ="safe").load(row["config"]) or {})


def objective_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """The metric that a run was judged by, and whether ``min`` or ``max`` of it is best."""
    objective = config_of(row)["objective"]
    return str(objective["metric"]), str(objective["mode"])


def space_of(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a sweep varied: how it drew (``{"loguniform": [1e-4, 0.1]}``) by dotted key; empty for other runs."""
    return dict(config_of(row).get("tune", {}).get("space", {}))


def trials_of(runs: pa.Table, sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a sweep's trials, in the order they were drawn, each with its ``parameters`` by dotted key.

    Args:
        runs: as :func:`mltrain.results.runs` answers.
        sweep: the sweep's row.
    """
    keys = list(space_of(sweep))
    rows = runs.filter(pc.field("sweep_id") == sweep["run_id"]).sort_by("run_id").to_pylist(maps_as_pydicts="strict")
    return [{**row, "parameters": parameters(row, keys)} for row in rows]


def parameters(row: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """What a run's config has at dotted keys; one that it lacks is None."""
    config = config_of(row) if keys else {}
    return {key: _at(config, key.split(".")) for key in keys}


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value

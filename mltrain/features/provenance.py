"""Where a dataset comes from: the record of each build, and whether the same build was done before."""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

import mltrain
from mltrain.config import DatasetFile, DatasetSpec, to_yaml
from mltrain.data.manifest import Manifest, manifest_path
from mltrain.data.publish import read_manifest, read_pointer, read_record
from mltrain.data.verify import all_intact
from mltrain.errors import DamagedError, NotFoundError
from mltrain.features.table import Source
from mltrain.storage import Store

RECIPE_VERSION = 3
"""Changes when the same file and the same rows would give another dataset."""


def recipe(spec: DatasetSpec, source: Source) -> str:
    """Hash of everything that determines the rows: builds with one recipe and one base have one digest."""
    settled = spec.model_dump(mode="json", exclude={"table", "version", "timestamp", "base"})
    content = {"version": RECIPE_VERSION, "table": [source.table_id, source.version], "dataset": settled}
    # Not canonical JSON: of patterns and splits the order counts.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def same_build(store: Store, name: str, wanted: str, base: str | None) -> Manifest | None:
    """The dataset that ``name`` points at, if a build with this recipe made it and all of it is in storage, whole.

    It was made so if it grew from the same base, or is the base: grown by rows that it has already.
    Whoever builds again because something is damaged gets it repaired: so what is there is read, not believed.
    """
    try:
        pointer = read_pointer(store, name)
        record = read_record(store, pointer["build"])
        if record.get("recipe") != wanted or base not in (record.get("base"), base and pointer["digest"]):
            return None
        manifest = read_manifest(store, manifest_path(pointer["digest"]))
    except (NotFoundError, DamagedError):
        return None
    return manifest if all_intact(store, manifest) else None


def record(
    file: DatasetFile, source: Source, recipe: str, base: str | None, started: datetime, spark_version: str
) -> dict[str, Any]:
    """Plain data for ``builds/<id>.json``."""
    return {
        "recipe": recipe,
        "base": base,
        "table": source.provenance(),
        "config": to_yaml(file),
        "started": started.isoformat(timespec="milliseconds"),
        "ended": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "code": {"mltrain": mltrain.__version__, "git": _git()},
        "engines": {"spark": spark_version, "pyarrow": pa.__version__},
    }


def _git() -> str | None:
    """The commit of the working directory; ``-dirty`` where files differ from it; None outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None

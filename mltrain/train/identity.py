"""What a run is: its resolved config, dataset and code, written when it is created and compared when it is resumed."""

import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mltrain import config as configs
from mltrain.config import Experiment
from mltrain.data import Dataset
from mltrain.errors import DamagedError, NotFoundError, RequestError
from mltrain.storage import normalise, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from mltrain.storage import Store

CONFIG = "config.yaml"
# Characters of an experiment's name in ids: a sweep's trials add to them, and all must be run ids.
_NAME = 64


def new_run_id(name: str) -> str:
    """``<name>-<utc>-<6>``: sorts by time, and does not collide. Of a long name the beginning must do."""
    return f"{name[:_NAME]}-{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(3)}"


def stored_config(run: "Store") -> Experiment:
    """The config that a run was created with.

    Raises:
        DamagedError: it cannot be read back.
    """
    import tempfile
    from pathlib import Path

    data = run.get(CONFIG)
    with tempfile.TemporaryDirectory(prefix="mltrain-config-") as directory:
        path = Path(directory) / CONFIG
        path.write_bytes(data)
        try:
            return configs.load_experiment(path)
        except RequestError as error:
            raise DamagedError(f"{run.join(CONFIG)} cannot be read back: {error}") from error


def resolve(config: Experiment, run: "Store", progress: "Callable[[str], None] | None") -> tuple[Experiment, Dataset]:
    """The config with its dataset pinned to a digest, and that dataset. An existing run keeps what it was created with.

    Raises:
        RequestError: the run exists and was created with another config or dataset; the message names the keys.
    """
    try:
        stored = stored_config(run)
    except NotFoundError:
        stored = None
    if stored is not None and isinstance(stored.dataset, str) and _same_name(config.dataset, stored.dataset):
        dataset = Dataset.resolve(config.root, stored.dataset, deadline_s=config.storage.deadline_s)
    else:
        dataset = _open(config, progress)
    name = dataset.name or (config.dataset.split("@")[0] if isinstance(config.dataset, str) else config.name)
    here = dataset.name is not None and dataset.store.uri == open_store(config.root).uri
    pinned = config.model_copy(
        update={"dataset": f"{name}@{dataset.digest}" if here else dataset.uri, "root": normalise(config.root)}
    )
    if stored is not None:
        _refuse_changes(run, stored, pinned)
    return pinned, dataset


def create(run: "Store", config: Experiment) -> None:
    """Writes the resolved config unless the run exists."""
    run.put_if_absent(CONFIG, configs.to_yaml(config).encode())


def described(config: Experiment, dataset: Dataset) -> dict[str, Any]:
    """What a row of the runs table says of the config and the dataset."""
    source = dataset.provenance.get("table", {})
    return {
        "name": config.name,
        "config": configs.to_yaml(config),
        "config_digest": configs.digest(config),
        "dataset_name": dataset.name,
        "dataset_digest": dataset.digest,
        "dataset_build": dataset.build or dataset.provenance.get("id"),
        "table_uri": source.get("uri"),
        "table_id": source.get("id"),
        "table_version": source.get("version"),
        "tags": dict(config.tags),
    }


def _open(config: Experiment, progress: "Callable[[str], None] | None") -> Dataset:
    if isinstance(config.dataset, str):
        return Dataset.resolve(config.root, config.dataset, deadline_s=config.storage.deadline_s)
    from mltrain import features

    file = configs.DatasetFile(
        name=config.name,
        root=config.root,
        dataset=config.dataset,
        storage=config.storage,
        cache=config.cache,
        tags=config.tags,
    )
    report = features.build(file, progress=progress)
    return Dataset.resolve(config.root, f"{report.name}@{report.digest}", deadline_s=config.storage.deadline_s)


def _same_name(reference: object, stored: str) -> bool:
    """Whether a reference without a digest names what the run has pinned."""
    return isinstance(reference, str) and "@" not in reference and stored.split("@")[0] == reference


def _refuse_changes(run: "Store", stored: Experiment, wanted: Experiment) -> None:
    if configs.digest(stored) == configs.digest(wanted):
        return
    before, after = (dict(_flat(configs.determining(config))) for config in (stored, wanted))
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    lines = "; ".join(f"{key} was {before.get(key)!r}, now {after.get(key)!r}" for key in changed)
    raise RequestError(
        f"Run {run.uri.rsplit('/', 1)[-1]} was created with another config: {lines}. Use the old values (they are in "
        f"{run.join(CONFIG)}) to resume it, or another --run-id for a new run."
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value

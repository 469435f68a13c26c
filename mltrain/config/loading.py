"""From a file, or a mapping, to a frozen config."""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML

from mltrain.config import overrides as _overrides
from mltrain.config.dataset import DatasetFile, DatasetSpec
from mltrain.config.experiment import Experiment
from mltrain.config.problems import config_error
from mltrain.config.search import extremes
from mltrain.config.size import copied
from mltrain.config.source import Origin, Source, escaped, quoted, read
from mltrain.config.uri import normalise
from mltrain.errors import ConfigError, RequestError

Config = TypeVar("Config", DatasetFile, Experiment)
Overrides = Mapping[str, Any] | Sequence[str]

_CATALOG_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*){1,2}")
# An experiment names them as it likes; a run is the same run wherever and for whomever it runs.
_NOT_IN_DIGEST = ("name", "root", "cluster", "loggers", "callbacks", "storage", "cache", "tags")
_NOT_IN_TRAIN_DIGEST = ("workers", "heartbeat", "collectives", "checkpoint", "max_local_batch_size")


def load(path: str | Path, overrides: Overrides = ()) -> DatasetFile | Experiment:
    """Reads a file: one with ``model`` is an experiment, and so is one whose ``dataset`` is a name.

    Args:
        path: a YAML file; relative paths in it are relative to it.
        overrides: ``["train.epochs=3"]`` or ``{"train.epochs": 3}``.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: anything in it is wrong; the message names key, value, file and line.
    """
    source = _overridden(read(path), overrides)
    return _experiment(source) if _is_experiment(source.data) else _validated(source, DatasetFile)


def load_dataset(path: str | Path, overrides: Overrides = ()) -> DatasetFile:
    """Reads a dataset file, or the dataset of an experiment file that holds one. Raises as ``load``."""
    return _dataset_of(load(path, overrides), str(path))


def load_experiment(path: str | Path, overrides: Overrides = ()) -> Experiment:
    """Reads an experiment file. Raises as ``load``."""
    return _experiment(_overridden(read(path), overrides))


def parse(
    mapping: Mapping[str, Any], overrides: Overrides = (), base_dir: str | Path = "."
) -> DatasetFile | Experiment:
    """The same as ``load`` from a mapping; relative paths in it are relative to ``base_dir``."""
    base = Path(base_dir).resolve()
    source = Source(copied(mapping), {(): Origin("the mapping", None, base)})
    source = _overrides.apply(source, overrides, base)
    return _experiment(source) if _is_experiment(source.data) else _validated(source, DatasetFile)


def _overridden(source: Source, overrides: Overrides) -> Source:
    origin = source.origin(())
    return _overrides.apply(source, overrides, origin.base_dir if origin else Path.cwd())


def _is_experiment(data: dict[str, Any]) -> bool:
    return any(key in data for key in ("model", "train", "objective", "tune")) or isinstance(data.get("dataset"), str)


def _dataset_of(config: DatasetFile | Experiment, place: str) -> DatasetFile:
    if isinstance(config, DatasetFile):
        return config
    if isinstance(config.dataset, str):
        raise ConfigError(
            f"{place}: dataset is the name {config.dataset!r}; to build it, want the mapping with table and label, "
            "or the file that holds it"
        )
    return DatasetFile(
        name=config.name,
        root=config.root,
        dataset=config.dataset,
        storage=config.storage,
        cache=config.cache,
        tags=config.tags,
    )


def _validated(source: Source, model: type[Config]) -> Config:
    try:
        json.dumps(source.data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source.origin(())}: {error}; want what YAML can hold") from error
    try:
        config = model.model_validate(source.data, strict=True)
    except ValidationError as error:
        raise config_error(error, source, model) from error
    return _resolved(config, source)


def _experiment(source: Source) -> Experiment:
    experiment = _validated(source, Experiment)
    if experiment.tune is None:
        return experiment
    for key, domain in experiment.tune.space.items():
        origin = source.origin(("tune", "space", key))
        for value in extremes(domain):
            _check_trial(source, key, value, origin)
    return experiment


def _check_trial(source: Source, key: str, value: Any, origin: Origin | None) -> None:
    base = origin.base_dir if origin else Path.cwd()
    alone = Source({name: inner for name, inner in source.data.items() if name != "tune"}, source.origins)
    try:
        _validated(_overrides.apply(alone, {key: value}, base), Experiment)
    except ConfigError as error:
        raise ConfigError(f"{origin}: tune.space {key} can draw {value!r}: {error}") from error


def _resolved(config: Config, source: Source) -> Config:
    """Relative paths become absolute, each against the file that it was written in."""

    def base(*keys: str) -> Path:
        origin = source.origin(keys)
        return origin.base_dir if origin else Path.cwd()

    changes: dict[str, Any] = {"root": _place(config.root, base("root"))}
    if isinstance(config.dataset, DatasetSpec):
        table = _table(config.dataset.table, base("dataset", "table"))
        changes["dataset"] = config.dataset.model_copy(update={"table": table})
    elif isinstance(config.dataset, str) and ("://" in config.dataset or config.dataset.startswith((".", "/", "~"))):
        changes["dataset"] = _place(config.dataset, base("dataset"))
    if isinstance(config, Experiment):
        factory = _reference(config.model.factory, base("model", "factory"), "model.factory")
        changes["model"] = config.model.model_copy(update={"factory": factory})
        changes["callbacks"] = tuple(_reference(one, base("callbacks"), "callbacks") for one in config.callbacks)
    if not config.cache.path.startswith("~"):
        path = str((base("cache", "path") / config.cache.path).resolve())
        changes["cache"] = config.cache.model_copy(update={"path": path})
    return config.model_copy(update=changes)


def _place(uri: str, base: Path) -> str:
    if "://" in uri:
        return normalise(uri)
    return normalise(base / Path(uri).expanduser())


def _table(table: str, base: Path) -> str:
    """A catalog name stays one, unless there is a directory of that name."""
    if _CATALOG_NAME.fullmatch(table) and not (base / table).exists():
        return table
    return _place(table, base)


def _reference(reference: str, base: Path, key: str) -> str:
    """``./file.py:name`` with the file's absolute path; ``package.module:name`` unchanged."""
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        if "/" in place:
            raise ConfigError(f"{key} {reference!r}: a path names a .py file, as in ./model.py:build")
        return reference
    file = (base / Path(place).expanduser()).resolve()
    # An absolute path may be a stored run's, read where its code lies beside it and not there.
    if not Path(place).is_absolute() and not file.is_file():
        raise ConfigError(f"{key} {reference!r}: there is no file {file}")
    return f"{file}:{name}"


def checked(given: object, wanted: type[Config], taker: str) -> Config:
    """``given``, if it is a config of the kind that ``taker`` takes.

    Raises:
        RequestError: it is not; the message says what it is.
    """
    if isinstance(given, wanted):
        return given
    kinds: dict[type, str] = {DatasetFile: "a dataset file", Experiment: "an experiment"}
    found = f"{kinds[type(given)]} ({given.name})" if isinstance(given, DatasetFile | Experiment) else repr(given)
    raise RequestError(
        f"{taker} was given {found[:200]}; wanted {kinds[wanted]}, as mltrain.config.load(file) returns for such a file"
    )


def to_yaml(config: DatasetFile | Experiment) -> str:
    """The whole config with every default; ``load`` of it gives an equal one."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 1 << 30
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(_yaml(config.model_dump(mode="json", exclude_none=True)), out)
    return out.getvalue()


# Text that YAML reads back as the same text, or that the emitter knows to quote (true, null). All else is escaped.
_PLAIN = re.compile(r"[A-Za-z_/~](?:[\w./@~+:-]*\w)?", re.ASCII)


def _yaml(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _yaml(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_yaml(inner) for inner in value]
    return _text(escaped(value)) if isinstance(value, str) else value


def _text(text: str) -> str:
    return text if _PLAIN.fullmatch(text) and text != "~" else quoted(text)


def determining(config: DatasetFile | Experiment) -> dict[str, Any]:
    """What determines the result; a run that is resumed may differ in everything else.

    The number of workers, storage, cluster and names are not in it, and of files named by a path only the file's name:
    where they lie differs from machine to machine.
    """
    data = config.model_dump(mode="json", exclude_none=True)
    found = {key: value for key, value in data.items() if key not in _NOT_IN_DIGEST}
    if isinstance(config, Experiment):
        found["train"] = {key: value for key, value in data["train"].items() if key not in _NOT_IN_TRAIN_DIGEST}
        found["model"] = {"factory": config.model.factory.rpartition("/")[2], "args": config.model.args}
    return found


def digest(config: DatasetFile | Experiment) -> str:
    """SHA-256 of what determines the result: two configs with one digest compute the same thing."""
    data = determining(config)
    if isinstance(config, Experiment):
        data["model"]["args"] = json.dumps(config.model.args, sort_keys=True)
    # The order of features and splits means something, so keys are not sorted.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

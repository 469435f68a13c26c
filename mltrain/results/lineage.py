"""From a run back to the table: result, checkpoint, dataset, build, Delta version, each link checked by its digest."""

import hashlib
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from mltrain.errors import DamagedError, NotFoundError
from mltrain.results.table import get
from mltrain.storage import Store, delta_options, open_store
from mltrain.storage.parsing import parse_object

_SEAL = b'{"checksum":"'


def lineage(root: str, run_id: str) -> dict[str, Any]:
    """Walks from a run's row to the version of the Delta table that its dataset was built from.

    Every step reads what is stored, checks it against the digest by which the step before named it, and goes on with
    what it says itself. Contents of shards and tensors are not read: ``mltrain dataset verify`` and loading the
    checkpoint do that.

    Returns:
        ``run`` (id, config and code digests), ``checkpoint`` (URI, digest, step), ``dataset`` (digest, URI), ``build``
        (its provenance record) and ``table`` (URI, id, version), and under ``verified`` the names of the checked links.

    Raises:
        NotFoundError: there is no such run, it has no checkpoint, or a link of the chain is gone.
        DamagedError: a link is not what the one before it names.
    """
    row = get(root, run_id)
    store = open_store(root)
    if row["checkpoint"] is None:
        raise NotFoundError(f"run {run_id} ({row['status']}) has no checkpoint, so there is no model to trace back")
    checkpoint = _checkpoint(row)
    dataset = _dataset(store, row)
    build = _build(store, row)
    return {
        "run": {name: row[name] for name in ("run_id", "status", "config_digest", "code_digest")},
        "checkpoint": {"uri": row["checkpoint"], "digest": row["checkpoint_digest"], "step": checkpoint.get("step")},
        "dataset": dataset,
        "build": build,
        "table": _table(row, build),
        "verified": ["checkpoint", "dataset", "build", "table"],
    }


def _checkpoint(row: dict[str, Any]) -> dict[str, Any]:
    content, where = _read(open_store(row["checkpoint"]), "manifest.json")
    _same(where, "SHA-256", hashlib.sha256(content).hexdigest(), row["checkpoint_digest"], "the run")
    checkpoint = _json(content, where)
    for name in ("config_digest", "dataset_digest"):
        # A sweep's row names the best trial's checkpoint, whose config is the trial's.
        if name == "dataset_digest" or row["kind"] != "sweep":
            _same(where, name, checkpoint.get(name), row[name], "the run")
    return checkpoint


def _dataset(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    digest = row["dataset_digest"]
    content, where = _read(store, f"shards/{digest}/manifest.json")
    if content.startswith(_SEAL):
        seal, body = content[len(_SEAL) :].split(b'",\n', 1)
        _same(where, "SHA-256", hashlib.sha256(body).hexdigest(), seal.decode(), "its first line")
    _same(where, "digest", _json(content, where).get("digest"), digest, "the run")
    return {"digest": digest, "uri": where, "name": row["dataset_name"]}


def _build(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    content, where = _read(store, f"builds/{row['dataset_build']}.json")
    build = _json(content, where)
    _same(where, "dataset", build.get("digest"), row["dataset_digest"], "the run")
    return build


def _table(row: dict[str, Any], build: dict[str, Any]) -> dict[str, Any]:
    source = build["table"]
    uri, version = source["uri"], source["version"]
    for name in ("uri", "id", "version"):
        _same(f"builds/{build['id']}.json", f"table {name}", source[name], row[f"table_{name}"], "the run")
    try:
        table = DeltaTable(uri, version=version, storage_options=delta_options(uri))
    except TableNotFoundError as error:
        raise NotFoundError(f"the Delta table {uri} of build {build['id']} is gone: {error}") from error
    except (DeltaError, OSError) as error:
        raise NotFoundError(f"version {version} of {uri} cannot be read any more: {error}") from error
    _same(uri, "table id", str(table.metadata().id), source["id"], "the build")
    return {"uri": uri, "id": source["id"], "version": version}


def _read(store: Store, path: str) -> tuple[bytes, str]:
    return store.get(path), store.join(path)


def _json(content: bytes, where: str) -> dict[str, Any]:
    try:
        return parse_object(content)
    except ValueError as error:
        raise DamagedError(f"{where} is damaged: {error}") from error


def _same(where: str, what: str, found: object, wanted: object, source: str) -> None:
    if found != wanted:
        raise DamagedError(f"{where}: {what} is {found}, {source} says {wanted}")

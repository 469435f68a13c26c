"""Checkpoints as they are stored: safetensors parts written by all ranks, and a manifest, last, by the controller.

A checkpoint exists only when its manifest does. Parts have names of their own under every driver and in every
generation, so that a rank of an older one cannot damage a checkpoint, nor an older driver that collects garbage.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mltrain.errors import DamagedError, NotFoundError, RequestError
from mltrain.storage.parsing import parse_object

if TYPE_CHECKING:
    from torch import Tensor

    from mltrain.storage import ObjectMeta, Store

FORMAT = 2
# Format 1 had one part a rank, whole tensors only, and no list of tensors.
_READABLE = (1, 2)
PREFIX = "checkpoints"
_READERS = 8
_FILE = re.compile(rf"{PREFIX}/step-(\d+)/([^/]+)")
_SET_ASIDE = "manifest.damaged.json"
# The driver's epoch is not in the names of format 1: nothing older is left to fear from them.
_PART = re.compile(r"part-(?:(?P<epoch>\d{3,})-\d{5,}-\d{4,}-\d{3,}|\d{5}-\d{4})-[0-9a-f]{12}\.safetensors")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Some of one rank's share of the tensors: an object of the run, its size and SHA-256, and what is in it.

    Attributes:
        tensors: names in the file.
        pieces: of the names that stand for some rows of a tensor, the tensor and the first row.
    """

    path: str
    rank: int
    size_bytes: int
    sha256: str
    tensors: tuple[str, ...]
    pieces: dict[str, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Part":
        """What `dataclasses.asdict` made, through JSON."""
        pieces = {key: (str(name), int(start)) for key, (name, start) in data.get("pieces", {}).items()}
        return cls(**{**data, "tensors": tuple(data["tensors"]), "pieces": pieces})


@dataclass(frozen=True)
class Checkpoint:
    """A manifest.

    Attributes:
        run_id: of the run that made it.
        step: updates applied.
        epoch: that the next step belongs to.
        driver_epoch: of the controller that made it.
        generation: that made it.
        parts: of all ranks.
        state: everything of a replica that is not a tensor.
        loader: position in the data: seed, epoch and step within it (random state derives from them).
        config_digest: of the run.
        dataset_digest: what was trained on.
        dataset_build: its build.
        created: UTC, ISO 8601.
        metrics: of the evaluation made at this step, if there was one.
        tensors: shapes by name.
    """

    run_id: str
    step: int
    epoch: int
    driver_epoch: int
    generation: int
    parts: tuple[Part, ...]
    state: dict[str, Any]
    loader: dict[str, Any]
    config_digest: str
    dataset_digest: str
    dataset_build: str | None
    created: str
    metrics: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, list[int]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The checkpoint's directory within the run."""
        return directory(self.step)

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 of the content: parts and state."""
        content = {"parts": sorted(part.sha256 for part in self.parts), "state": self.state}
        return hashlib.sha256(_canonical(content)).hexdigest()

    def to_bytes(self) -> bytes:
        """The manifest as it is stored; it carries its own checksum."""
        body = {"format": FORMAT, **asdict(self), "digest": self.digest}
        return json.dumps({**body, "checksum": hashlib.sha256(_canonical(body)).hexdigest()}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "Checkpoint":
        """The inverse of `to_bytes`.

        Raises:
            DamagedError: not a manifest, or changed since it was written.
            RequestError: another version of mltrain wrote it.
        """
        try:
            body = parse_object(data)
            checksum = body.pop("checksum")
            if hashlib.sha256(_canonical(body)).hexdigest() != checksum:
                raise ValueError("its checksum does not match")
            if (found := body.pop("format")) not in _READABLE:
                known = " and ".join(map(str, _READABLE))
                raise RequestError(
                    f"{name} has format {found}, this mltrain reads {known}: use the version that wrote it"
                )
            body.pop("digest")
            return cls(**{**body, "parts": tuple(Part.from_json(part) for part in body["parts"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"checkpoint manifest {name} is damaged: {error}") from error


def directory(step: int) -> str:
    """Where the checkpoint after ``step`` updates lies, below the run."""
    return f"{PREFIX}/step-{step:09d}"


def manifest_path(step: int) -> str:
    """Its manifest."""
    return f"{directory(step)}/manifest.json"


def part_path(step: int, driver_epoch: int, generation: int, rank: int, number: int, sha256: str) -> str:
    """Where a part lies, below the run: by its content, and by who wrote it."""
    by = f"{driver_epoch:03d}-{generation:05d}-{rank:04d}-{number:03d}"
    return f"{directory(step)}/part-{by}-{sha256[:12]}.safetensors"


def read_tensors(run: "Store", checkpoint: Checkpoint, prefix: str = "") -> "dict[str, Tensor]":
    """The tensors of a checkpoint whose names begin with ``prefix``, verified; several parts are read at a time.

    Raises:
        DamagedError: a part is missing, truncated or changed, or the parts are not all; the message names it.
    """
    import torch

    wanted = [part for part in checkpoint.parts if any(name.startswith(prefix) for name in part.tensors)]
    found: dict[str, Tensor] = {}
    rows: dict[str, list[tuple[int, Tensor]]] = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="restore") as pool:
        for part, tensors in zip(wanted, pool.map(lambda part: _read_part(run, part), wanted), strict=True):
            for key, tensor in tensors.items():
                if key in part.pieces:
                    name, start = part.pieces[key]
                    rows.setdefault(name, []).append((start, tensor))
                else:
                    found[key] = tensor
    found |= {name: torch.cat([tensor for _, tensor in sorted(pieces, key=_start)]) for name, pieces in rows.items()}
    _check_whole(run, checkpoint, found, prefix)
    return {name: tensor for name, tensor in found.items() if name.startswith(prefix)}


def _start(piece: "tuple[int, Tensor]") -> int:
    return piece[0]


def _read_part(run: "Store", part: Part) -> "dict[str, Tensor]":
    from safetensors.torch import load

    for _ in range(2):  # what was changed on its way is whole the second time
        try:
            data = run.get(part.path)
        except NotFoundError as error:
            raise DamagedError(f"checkpoint part {run.join(part.path)} is missing") from error
        if len(data) == part.size_bytes and hashlib.sha256(data).hexdigest() == part.sha256:
            return load(data)
    seen = f"{len(data)} bytes of {part.size_bytes}" if len(data) != part.size_bytes else "another SHA-256"
    raise DamagedError(f"checkpoint part {run.join(part.path)} is damaged: {seen}")


def _check_whole(run: "Store", checkpoint: Checkpoint, found: "Mapping[str, Tensor]", prefix: str) -> None:
    """Manifests of format 1 do not say which tensors there are."""
    for name, shape in checkpoint.tensors.items():
        if name.startswith(prefix) and (name not in found or list(found[name].shape) != shape):
            raise DamagedError(f"checkpoint {run.join(checkpoint.path)} is damaged: its parts lack (rows of) {name}")


def stored(run: "Store") -> "list[Checkpoint]":
    """All checkpoints with an intact manifest, by step. Damaged manifests are logged and left alone."""
    found = []
    for step in steps(run):
        try:
            found.append(Checkpoint.from_bytes(run.get(manifest_path(step)), run.join(manifest_path(step))))
        except (DamagedError, NotFoundError) as error:
            _LOG.warning("%s", error)
    return found


def steps(run: "Store") -> list[int]:
    """Steps that have a manifest, intact or not, in ascending order."""
    return sorted(step for step, name in _files(run.list(PREFIX)) if name == "manifest.json")


def set_aside(run: "Store", step: int) -> None:
    """Renames a damaged checkpoint's manifest, so that it no longer exists and the step can be saved again."""
    path = manifest_path(step)
    try:
        run.put(f"{directory(step)}/{_SET_ASIDE}", run.get(path))
    except NotFoundError:
        return
    run.delete(path)


def to_delete(kept_steps: Sequence[int], keep: int, best: int | None) -> list[int]:
    """Steps whose checkpoints may go: all but the last ``keep`` (at least one) and the best. Pure."""
    ordered = sorted(kept_steps)
    last = set(ordered[-max(1, keep) :])
    return [step for step in ordered if step not in last and step != best]


def garbage(listed: "Iterable[ObjectMeta]", kept: Mapping[int, Checkpoint], keep: int, driver_epoch: int) -> list[str]:
    """Paths of what no checkpoint needs, and none will: parts of abandoned and deleted ones, and what was set aside.

    Pure. For a step after the newest checkpoint a rank may still be writing, and a later driver for any: their parts
    stay. As long as a step is among the last ``keep``, so do parts of earlier drivers (one that was paused may be about
    to put their manifest) and what was set aside (for people to look at).

    Args:
        listed: the objects below `PREFIX`, seen when no checkpoint before the newest was on its way.
        kept: the run's checkpoints, not none.
        keep: how many of the last ones stay.
        driver_epoch: of the controller that asks, which holds the run's lease.
    """
    found: dict[int, dict[str, str]] = {}
    for meta in listed:
        for step, name in _files([meta]):
            found.setdefault(step, {})[name] = meta.path
    needed = {part.path for checkpoint in kept.values() for part in checkpoint.parts}
    newest, recent = max(kept), sorted(kept)[-keep:][0]
    gone = []
    for step in sorted(step for step in found if step <= newest):
        names = found[step]
        if "manifest.json" in names and step not in kept:
            continue  # of a controller that held the run before: whole, for all that is known
        if _SET_ASIDE in names and step > recent:
            continue
        epochs = {name: int(match["epoch"] or 0) for name in names if (match := _PART.fullmatch(name))}
        highest = driver_epoch if step <= recent else 0
        gone += [
            names[name]
            for name, epoch in sorted(epochs.items())
            if names[name] not in needed and (epoch == driver_epoch or epoch <= highest)
        ]
        gone += [names[_SET_ASIDE]] if _SET_ASIDE in names else []
    return gone


def inventory(run: "Store") -> list[dict[str, Any]]:
    """What is stored of each checkpoint, by step, without reading tensors.

    Returns:
        ``step``, ``size_bytes``, ``created`` (ISO 8601, or None), ``metrics`` and ``state``: ``complete``,
        ``damaged: …`` with the file, ``set aside: …`` (damaged, found by a restore) or ``incomplete`` (no manifest: on
        its way, or abandoned).
    """
    found: dict[int, dict[str, ObjectMeta]] = {}
    for meta in run.list(PREFIX):
        for step, name in _files([meta]):
            found.setdefault(step, {})[name] = meta
    return [{"step": step, **_state(run, step, found[step])} for step in sorted(found)]


def _state(run: "Store", step: int, files: "Mapping[str, ObjectMeta]") -> dict[str, Any]:
    size = sum(meta.size_bytes for name, meta in files.items() if _PART.fullmatch(name))
    unknown: dict[str, Any] = {"size_bytes": size, "created": None, "metrics": {}}
    if "manifest.json" not in files:
        return unknown | {"state": "set aside: damaged" if _SET_ASIDE in files else "incomplete"}
    try:
        manifest = Checkpoint.from_bytes(run.get(manifest_path(step)), run.join(manifest_path(step)))
    except (DamagedError, NotFoundError):
        return unknown | {"state": "damaged: manifest.json"}
    sizes = {meta.path: meta.size_bytes for meta in files.values()}
    bad = [part.path for part in manifest.parts if sizes.get(part.path) != part.size_bytes]
    how = "truncated" if bad and bad[0] in sizes else "missing"
    state = f"damaged: {bad[0].rsplit('/', 1)[-1]} is {how}" if bad else "complete"
    return {
        "size_bytes": manifest.size_bytes, "created": manifest.created, "metrics": manifest.metrics, "state": state,
    }  # fmt: skip


def _files(listed: "Iterable[ObjectMeta]") -> Iterable[tuple[int, str]]:
    """Step and name of every file of a checkpoint."""
    for meta in listed:
        if (match := _FILE.fullmatch(meta.path)) is not None:
            yield int(match[1]), match[2]


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

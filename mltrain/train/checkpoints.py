"""Checkpoints: safetensors parts written by all ranks, and a manifest, last, by the controller.

A checkpoint exists only when its manifest does. Parts have names of their own in every generation, so that a rank of an
older generation cannot damage one.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mltrain.errors import DamagedError, NotFoundError
from mltrain.storage.parsing import parse_object

if TYPE_CHECKING:
    from torch import Tensor

    from mltrain.storage import Store

FORMAT = 1
PREFIX = "checkpoints"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One rank's share of the tensors: an object of the run, its size and SHA-256, and what is in it."""

    path: str
    rank: int
    size_bytes: int
    sha256: str
    tensors: tuple[str, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Part":
        return cls(**{**data, "tensors": tuple(data["tensors"])})


@dataclass(frozen=True)
class Checkpoint:
    """A manifest.

    Attributes:
        run_id: of the run that made it.
        step: updates applied.
        epoch: that the next step belongs to.
        driver_epoch: of the controller that made it.
        generation: that made it.
        parts: one a rank.
        state: everything of a replica that is not a tensor.
        loader: position in the data: seed, epoch and step within it (random state derives from them).
        config_digest: of the run.
        dataset_digest: what was trained on.
        dataset_build: its build.
        metrics: of the evaluation made at this step, if there was one.
        created: UTC, ISO 8601.
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

    @property
    def path(self) -> str:
        """The checkpoint's directory within the run."""
        return directory(self.step)

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
        """
        try:
            body = parse_object(data)
            checksum = body.pop("checksum")
            if hashlib.sha256(_canonical(body)).hexdigest() != checksum:
                raise ValueError("its checksum does not match")
            if body.pop("format") != FORMAT:
                raise ValueError("it was written by another version of mltrain")
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


def shares(sizes: Mapping[str, int], ranks: int) -> list[list[str]]:
    """Which tensors each rank writes: about 1/ranks of the bytes each. Pure, so that ranks need not talk about it."""
    result: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        result[rank].append(name)
        loads[rank] += sizes[name]
    return result


def write_part(run: "Store", step: int, generation: int, rank: int, tensors: "Mapping[str, Tensor]") -> Part:
    """Writes one rank's share."""
    from safetensors.torch import save

    data = save(dict(tensors))
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{directory(step)}/part-{generation:05d}-{rank:04d}-{sha256[:12]}.safetensors"
    run.put(path, data)
    return Part(path, rank, len(data), sha256, tuple(sorted(tensors)))


def read_tensors(run: "Store", checkpoint: Checkpoint) -> "dict[str, Tensor]":
    """All tensors of a checkpoint, verified.

    Raises:
        DamagedError: a part is missing, truncated or changed; the message names it.
    """
    from safetensors.torch import load

    tensors: dict[str, Tensor] = {}
    for part in checkpoint.parts:
        try:
            data = run.get(part.path)
        except NotFoundError as error:
            raise DamagedError(f"checkpoint part {run.join(part.path)} is missing") from error
        if len(data) != part.size_bytes or hashlib.sha256(data).hexdigest() != part.sha256:
            raise DamagedError(
                f"checkpoint part {run.join(part.path)} is damaged: {len(data)} bytes of {part.size_bytes}, or "
                "another SHA-256"
            )
        tensors.update(load(data))
    return tensors


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
    return sorted(
        int(meta.path.split("/")[-2].removeprefix("step-"))
        for meta in run.list(PREFIX)
        if meta.path.endswith("/manifest.json")
    )


def set_aside(run: "Store", step: int) -> None:
    """Renames a damaged checkpoint's manifest, so that it no longer exists and the step can be saved again."""
    path = manifest_path(step)
    try:
        run.put(f"{directory(step)}/manifest.damaged.json", run.get(path))
    except NotFoundError:
        return
    run.delete(path)


def to_delete(kept_steps: Sequence[int], keep: int, best: int | None) -> list[int]:
    """Steps whose checkpoints may go: all but the last ``keep`` (at least one) and the best. Pure."""
    ordered = sorted(kept_steps)
    last = set(ordered[-max(1, keep) :])
    return [step for step in ordered if step not in last and step != best]


def delete(run: "Store", step: int) -> None:
    """Deletes a checkpoint, its manifest first."""
    run.delete(manifest_path(step))
    for meta in list(run.list(directory(step))):
        run.delete(meta.path)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

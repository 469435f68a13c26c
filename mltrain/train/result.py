"""A run that has ended, and the model that it made."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mltrain.errors import DamagedError, NotFoundError
from mltrain.results import read_metrics, read_result, run_path
from mltrain.storage import open_store
from mltrain.train import checkpoints
from mltrain.train.checkpoints import Checkpoint
from mltrain.train.usercode import Shipped, build

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import nn

    from mltrain.config import Experiment
    from mltrain.data import Dataset
    from mltrain.storage import Store

_ROWS = 8192


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        run_id: the run.
        root: its root.
        status: ``finished``, ``stopped`` (resumable) or ``failed``.
        metrics: of the best checkpoint, by ``<split>/<name>``; `evaluate` gives those of other splits.
        checkpoint: URI of the best checkpoint, None if there is none.
        checkpoint_digest: SHA-256 of its manifest.
        step: updates applied in all.
        epochs: the same in epochs.
        dataset: ``name``, ``digest``, ``build`` and ``uri``.
        factory: ``kind``, ``name`` and ``digest`` of the model's code.
        wall_s: seconds, over all attempts.
        losses_survived: workers lost while training went on.
        downtime_s: seconds without a step because of them.
        steps_repeated: steps computed again because of them.
        workers: the most at any time.
        worker_seconds: seconds times workers.
        error: why it failed.
    """

    run_id: str
    root: str
    status: str
    metrics: dict[str, float]
    checkpoint: str | None
    checkpoint_digest: str | None
    best_step: int | None
    step: int
    epochs: float
    dataset: dict[str, Any]
    factory: dict[str, Any]
    started: str
    ended: str
    wall_s: float
    losses_survived: int = 0
    downtime_s: float = 0.0
    steps_repeated: int = 0
    generations: int = 0
    workers: int = 0
    worker_seconds: float = 0.0
    reason: str = ""
    error: str | None = None
    resume_command: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``result.json`` holds it."""
        return dataclasses.asdict(self)

    @cached_property
    def config(self) -> "Experiment":
        """The run's resolved config."""
        from mltrain.train.identity import stored_config

        return stored_config(self._run)

    @cached_property
    def history(self) -> "pa.Table":
        """Metrics by step: a row a step, a column a metric, null where it was not taken."""
        return read_metrics(open_store(self.root), self.run_id)

    def load_model(self) -> "nn.Module":
        """The best checkpoint's model, in evaluation mode, on the CPU; built by the code that is kept with the run.

        Raises:
            NotFoundError: the run has no checkpoint.
            DamagedError: the checkpoint is damaged.
        """
        checkpoint = self._manifest()
        weights = checkpoints.read_tensors(self._run, checkpoint, "model.")
        model = build(self._shipped(), self._open_dataset().schema, dict(self.config.model.args))
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
        return model.eval()

    def predict(self, split: str) -> "pa.Table":
        """Scores of the best model for every row of a split, in the dataset's canonical order.

        Returns:
            The dataset's key columns, then for each task ``score_<task>`` (probability or value), or
            ``score_<task>_<class>`` for every class.
        """
        from mltrain.train.scoring import predict

        return predict(self.load_model(), self._open_dataset(), split, _ROWS)

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics of the best model on a split, by ``<split>/<name>``."""
        from mltrain.train.scoring import evaluate_model

        return evaluate_model(self.load_model(), self._open_dataset(), split, _ROWS)

    @property
    def _run(self) -> "Store":
        return open_store(self.root).sub(run_path(self.run_id))

    def _open_dataset(self) -> "Dataset":
        from mltrain.data import Dataset

        return Dataset.open(self.dataset["uri"])

    def _manifest(self) -> Checkpoint:
        if self.best_step is None:
            raise NotFoundError(f"run {self.run_id} ({self.status}) has no checkpoint, so there is no model to load")
        path = checkpoints.manifest_path(self.best_step)
        try:
            return Checkpoint.from_bytes(self._run.get(path), self._run.join(path))
        except NotFoundError as error:
            raise DamagedError(f"the best checkpoint of run {self.run_id}, {self._run.join(path)}, is gone") from error

    def _shipped(self) -> Shipped:
        kind, name = self.factory["kind"], self.factory["name"]
        content = b""
        if kind == "file":
            content = self._run.get(f"code/{name.rsplit(':', 1)[0]}")
        if kind == "pickle":
            content = self._run.get("code/factory.pkl")
        shipped = Shipped(kind, name, content, self.factory.get("directory", ""))
        if shipped.digest != self.factory["digest"]:
            raise DamagedError(f"the code of run {self.run_id}, {self._run.join('code')}, changed since it ran")
        return shipped


def load(root: str, run_id: str) -> Result:
    """The result of a run that has ended.

    Raises:
        RequestError: this cannot be a run's id.
        NotFoundError: there is no such run, or it has not ended.
    """
    return Result(**read_result(open_store(root), run_id))

"""A run on Ray workers to which a test does things: it runs in a thread, and the test waits for what it says."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mltrain import train
from mltrain.errors import MltrainError
from mltrain.results import read_metrics
from mltrain.storage import open_store
from tests.support.training import experiment, faulty, parse, weights

# A model that takes its time for a step, more where a file says so, and leaves a file for every step that it begins.
# The sums of a part of its gradients, of some MB, are exact. It has no hidden layer: over thousands of steps the
# ReLUs of one make differences of the last bit a thousand times as large, and a wrong sum could hide behind them.
PACED_MODEL = """
import os, time
from pathlib import Path

import torch
from mltrain.models import TabularMLP
from torch.nn import functional


class Model(TabularMLP):
    def __init__(self, schema, steps, pace_s, exact):
        super().__init__(schema, (), 0.0, None, False)
        self.steps, self.pace_s = steps, pace_s
        self.exact = torch.nn.Parameter(torch.zeros(exact))

    def forward(self, batch):
        if self.training and self.steps is not None:
            Path(self.steps, f"{batch.epoch}-{batch.step}").touch()
            time.sleep(self.pace_s * (10 if Path(self.steps, f"slow-{os.getpid()}").exists() else 1))
        return super().forward(batch)

    def loss(self, outputs, batch):
        label = batch.labels["y"].reshape(-1).float()
        losses = functional.binary_cross_entropy_with_logits(outputs["y"].reshape(-1), label, reduction="none")
        if self.training and batch.global_rows & (batch.global_rows - 1) == 0:
            # Adds nothing. Its gradient is a sum of small whole numbers over a power of two: whatever the order of
            # summation, its bits are the same.
            numbers = (batch["__row__"] % 8).float()
            losses = losses + numbers * (self.exact - self.exact.detach()).sum()
        return losses


def build(schema, steps=None, pace_s=0.0, exact=1_000_000):
    torch.manual_seed(1)
    return Model(schema, steps, pace_s, exact)
"""

_WAIT_S = 300.0


def paced(root: Path, address: str, folder: Path, workers: Mapping[str, Any], **train: Any) -> dict[str, Any]:
    """An endless experiment with the paced model, without evaluations and checkpoints.

    Its optimizer does not make large differences of small ones, as Adam does where gradients are small.
    """
    made = experiment(root, workers=workers, address=address, epochs=10_000, **train)
    made["train"]["optimizer"] = {"name": "sgd", "lr": 0.01}
    made["train"] |= {"evaluate": {"every": {"epochs": 10_000}}, "checkpoint": {"every": {"steps": 1_000_000}}}
    return faulty(made, folder, PACED_MODEL, steps=str(folder), pace_s=0.03)


def check_exact(root: Path, run_id: str, mapping: Mapping[str, Any], *, workers: int = 0) -> None:
    """Every row once, in its step; the weights of an undisturbed run of as many steps; exact sums to the last bit.

    Args:
        workers: how many the run always had, if it was a fixed number. Then all weights are equal to the last bit.
    """
    seen = read_metrics(open_store(root), run_id)
    steps = seen["step"].to_pylist()
    assert steps == list(range(1, len(steps) + 1))
    quiet = {**mapping, "model": {**mapping["model"], "args": {**mapping["model"]["args"], "steps": None}}}
    quiet["train"] = {**mapping["train"], "workers": workers, "epochs": None, "max_steps": len(steps)}
    quiet["train"] |= {"checkpoint": {"every": {"steps": 1_000_000}}}
    train.run(parse(quiet), run_id=f"{run_id}-alone")
    alone = read_metrics(open_store(root), f"{run_id}-alone")
    assert seen["train/samples"].to_pylist() == alone["train/samples"].to_pylist()
    expected = weights(root, f"{run_id}-alone", len(steps))
    for name, value in weights(root, run_id, len(steps)).items():
        if workers or name == "model.exact":
            np.testing.assert_array_equal(value, expected[name])
        else:
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


class Drill:
    """A run under way.

    Attributes:
        said: every event so far, oldest first.
    """

    _current: "Drill"

    def __init__(self, mapping: Mapping[str, Any], run_id: str) -> None:
        self.said: list[dict[str, Any]] = []
        self.result: train.Result | None = None
        self.error: Exception | None = None
        self._mapping = {**mapping, "callbacks": ["tests.support.drill:listener"]}
        self._run_id = run_id
        self._steps = mapping["model"]["args"].get("steps")
        self._stop = train.StopRequest()
        self._new: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="drill")

    def on_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._new.put({"event": kind, "at": time.monotonic(), **fields})

    def until(self, kind: str, timeout_s: float = _WAIT_S, **fields: Any) -> dict[str, Any]:
        """Waits for the next event of a kind, with these fields, that was not waited for before.

        Raises:
            TimeoutError: it did not come; the message tells what did.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                event = self._new.get(timeout=max(0.0, min(0.2, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() < deadline and self._thread.is_alive():
                    continue
                story = "\n".join(str(said) for said in self.said)
                raise TimeoutError(f"no {kind!r} with {fields}: {self.error!r}\n{story}") from self.error
            self.said.append(event)
            if event["event"] == kind and all(event[name] == value for name, value in fields.items()):
                return event

    def until_step(self, epoch: int, step: int) -> None:
        """Waits until a worker has begun a step."""
        begun = Path(self._steps, f"{epoch}-{step}")
        deadline = time.monotonic() + _WAIT_S
        while not begun.exists():
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise TimeoutError(f"step {step} of epoch {epoch} did not begin: {self.error!r}") from self.error
            time.sleep(0.002)

    def stop(self) -> None:
        """Asks for an orderly end, and waits for it."""
        self._stop.request("the drill is over")
        self.join()

    def join(self) -> None:
        """Waits for the end."""
        self._thread.join(_WAIT_S)
        if self._thread.is_alive():
            raise TimeoutError("the run does not end")
        with contextlib.suppress(queue.Empty):
            while True:
                self.said.append(self._new.get_nowait())

    @property
    def running(self) -> bool:
        """Whether the run has not ended."""
        return self._thread.is_alive()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What was said so far of a kind."""
        return [event for event in self.said if event["event"] == kind]

    def _run(self) -> None:
        try:
            self.result = train.run(parse(self._mapping), run_id=self._run_id, stop=self._stop)
        except MltrainError as error:
            self.error = error


@contextlib.contextmanager
def drill(mapping: Mapping[str, Any], run_id: str) -> Iterator[Drill]:
    """Starts a run; with the block it ends, also when the block fails."""
    made = Drill._current = Drill(mapping, run_id)
    made._thread.start()
    try:
        yield made
    finally:
        made._stop.request("the drill is over")
        made._thread.join(_WAIT_S)


def listener() -> Drill:
    """The callback of the run under way."""
    return Drill._current

"""Ray Train's `report()` for `benchmarks.checkpoint`: a training of its own that saves when it is told to."""

import tempfile
import threading
import time
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

# Stall, until durable and restore, in seconds; bytes.
Measured = tuple[float, float, float, int]


class RayReport:
    """A Ray Train V2 run of one worker in a Ray of its own, with checkpoints in a directory or a bucket.

    Args:
        storage: a directory, or ``bucket/prefix``.
        filesystem: of the bucket.
        tensors: to be saved, again and again.
    """

    def __init__(self, storage: str, filesystem: Any, tensors: dict[str, Tensor]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        settings = {name: f"{self._folder.name}/{name}" for name in ("tensors", "told")}
        torch.save(tensors, settings["tensors"])
        self._listener = Listener(settings["told"])
        self._thread = threading.Thread(target=self._fit, args=(storage, filesystem, settings), name="ray train")

    def __enter__(self) -> Self:
        self._thread.start()
        self._worker = self._listener.accept()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.send(False)
        self._thread.join()
        self._listener.close()
        self._folder.cleanup()

    def save(self) -> Measured:
        """Saves once more, with an upload beside the steps, and reads it back."""
        self._worker.send(True)
        measured: Measured = self._worker.recv()
        return measured

    @staticmethod
    def _fit(storage: str, filesystem: Any, settings: dict[str, str]) -> None:
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        TorchTrainer(
            _train,
            train_loop_config=settings,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name="report",
                storage_path=storage,
                storage_filesystem=filesystem,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
        ).fit()
        ray.shutdown()


def _train(settings: dict[str, str]) -> None:
    import ray.train

    torch.set_num_threads(1)
    tensors = torch.load(settings["tensors"])
    with Client(settings["told"]) as driver:
        while driver.recv():
            began = time.perf_counter()
            folder = tempfile.mkdtemp()
            torch.save(tensors, Path(folder, "state.pt"))
            ray.train.report(
                {},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                delete_local_checkpoint_after_upload=True,
            )
            stall_s = time.perf_counter() - began
            saved = ray.train.get_all_reported_checkpoints()[-1].checkpoint
            durable_s = time.perf_counter() - began
            began = time.perf_counter()
            with saved.as_directory() as found:
                file = Path(found, "state.pt")
                torch.load(file, weights_only=True)
                size = file.stat().st_size
            driver.send((stall_s, durable_s, time.perf_counter() - began, size))

"""Copies of batches to a GPU, overlapped with its work."""

from typing import Any

import torch

from mltrain.data.batch import Batch
from mltrain.data.gather import Part
from mltrain.errors import RequestError


class CudaFeed:
    """Copies page-locked buffers to a device on a stream of its own.

    Args:
        device: a CUDA device.

    Raises:
        RequestError: there is no such device here.
    """

    def __init__(self, device: Any) -> None:
        try:
            self.device = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise RequestError(f"device {device!r} is none: {str(error).splitlines()[0]}") from error
        if self.device.type != "cuda" or not torch.cuda.is_available():
            raise RequestError(f"device {str(device)!r} is not usable here; use device='cpu', or a machine with a GPU")
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def wait_until_free(self, part: Part) -> None:
        """Waits until the part's last copy has left it."""
        if part.copied is not None:
            part.copied.synchronize()

    def copy(self, batch: Batch, part: Part) -> Batch:
        """Starts the copy of a part; the batch is on the device once :meth:`hand_over` has ordered it."""
        with torch.cuda.stream(self._stream):
            moved = batch.to(self.device, non_blocking=True)
            part.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            part.copied.record(self._stream)
        return moved

    def hand_over(self, batch: Batch, part: Part) -> None:
        """Makes what the current stream does next wait for the copy, and keeps the memory until it is done."""
        current = torch.cuda.current_stream(self.device)
        if part.copied is not None:
            current.wait_event(part.copied)
        for tensor in batch.tensors():
            tensor.record_stream(current)

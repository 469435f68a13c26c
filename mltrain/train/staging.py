"""Host memory that a rank's share of a checkpoint is copied to, already in the form of its files."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mltrain.errors import TrainingError
from mltrain.train.layout import PartLayout, TensorInfo

_DTYPES = {
    torch.complex64: "C64", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64", torch.float32: "F32",
    torch.int32: "I32", torch.uint32: "U32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int16: "I16",
    torch.uint16: "U16", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip
_ALIGNED = 64


def describe(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Types and shapes.

    Raises:
        TrainingError: a type that safetensors does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided:
            kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
            raise TrainingError(f"{name} is {kind}, which a checkpoint cannot hold: give the model another type there")
    return {name: TensorInfo(_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


class Staging:
    """A buffer that is used again as long as what goes into it keeps its shape.

    Args:
        pinned: in memory that a GPU writes to directly.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._parts: tuple[PartLayout, ...] = ()
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._targets: list[tuple[str, slice | None, Tensor]] = []
        self._files: list[memoryview] = []

    def fill(
        self, tensors: Mapping[str, Tensor], infos: Mapping[str, TensorInfo], parts: tuple[PartLayout, ...]
    ) -> Sequence[memoryview]:
        """Copies the rows of ``tensors`` that the parts hold. Returns the files' bytes, valid until the next call."""
        if parts != self._parts:
            self._lay_out(infos, parts)
        with torch.no_grad():
            for name, rows, target in self._targets:
                source = tensors[name] if rows is None else tensors[name][rows]
                target.copy_(source, non_blocking=self._pinned)
        if self._pinned:
            torch.cuda.synchronize()
        return self._files

    def _lay_out(self, infos: Mapping[str, TensorInfo], parts: tuple[PartLayout, ...]) -> None:
        starts, size = [], 0
        for part in parts:
            starts.append(size)
            size += part.size_bytes + -part.size_bytes % _ALIGNED
        if size > self._buffer.numel():
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        self._parts, self._targets, self._files = parts, [], []
        types = {name: dtype for dtype, name in _DTYPES.items()}
        for start, part in zip(starts, parts, strict=True):
            file = self._buffer[start : start + part.size_bytes]
            file[: len(part.header)] = torch.frombuffer(bytearray(part.header), dtype=torch.uint8)
            for piece, offset in zip(part.pieces, part.offsets, strict=True):
                info = infos[piece.name]
                count = (piece.stop - piece.start) * info.row_bytes
                shape = (piece.stop - piece.start, *info.shape[1:]) if info.shape else ()
                target = file[offset : offset + count].view(types[info.dtype]).view(shape)
                self._targets.append((piece.name, None if piece.whole else slice(piece.start, piece.stop), target))
            self._files.append(file.numpy().data)

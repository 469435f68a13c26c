"""How the tensors of a checkpoint are spread over ranks and files. Pure: ranks that see equal shapes need not talk.

The tensors stand in a line, by name, so that weights come before the optimizer's state, and the line is cut into as
many shares of equal bytes as there are ranks. A cut goes between two tensors where that keeps the shares even, and
otherwise between two rows of a tensor. A share is stored as files of the safetensors format.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

# A request that fails is repeated whole, and must end within a request's time even where many share a slow link.
PART_BYTES = 32 << 20
# Shares may differ by this part of a share, rather than cut a tensor.
_EVEN = 0.05
_ALIGNED = 64

ITEM_BYTES = {
    "C64": 8, "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1,
}  # fmt: skip
"""Bytes of an element, by the name that safetensors has for its type."""


@dataclass(frozen=True)
class TensorInfo:
    """Type (as safetensors calls it) and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Along the first dimension; a tensor without dimensions is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * ITEM_BYTES[self.dtype]

    @property
    def size_bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, ``whole`` if these are all."""

    name: str
    start: int
    stop: int
    whole: bool

    @property
    def key(self) -> str:
        """What it is called in its file."""
        return self.name if self.whole else f"{self.name}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class PartLayout:
    """A file: its header, and where the data of each piece begins in it."""

    pieces: tuple[Piece, ...]
    header: bytes
    offsets: tuple[int, ...]
    size_bytes: int


def share(
    tensors: Mapping[str, TensorInfo], rank: int, ranks: int, part_bytes: int = PART_BYTES
) -> tuple[PartLayout, ...]:
    """The files that a rank writes, of about ``part_bytes`` at most; none of both weights and optimizer state.

    A row is never cut, so that a tensor of one huge row makes a large file.
    """
    pieces = _cut(tensors, ranks)[rank]
    return tuple(_laid_out(part, tensors) for part in _packed(pieces, tensors, part_bytes))


def _cut(tensors: Mapping[str, TensorInfo], ranks: int) -> list[list[tuple[str, int, int]]]:
    """For each rank the rows (name, start, stop) that are its share."""
    total = sum(info.size_bytes for info in tensors.values())
    shares: list[list[tuple[str, int, int]]] = [[] for _ in range(ranks)]
    slack, position, rank = _EVEN * total / ranks, 0, 0
    for name in sorted(tensors):
        info, row = tensors[name], 0
        while row < info.rows or info.rows == 0:
            room = total * (rank + 1) / ranks - position
            left = (info.rows - row) * info.row_bytes
            rows = info.rows - row
            if rank < ranks - 1 and left > room + slack:
                rows = 0 if room < slack else min(rows, round(room / info.row_bytes))
                if rows == 0:
                    rank += 1
                    continue
            shares[rank].append((name, row, row + rows))
            row += rows
            position += rows * info.row_bytes
            if info.rows == 0:
                break
    return shares


def _packed(
    rows: Sequence[tuple[str, int, int]], tensors: Mapping[str, TensorInfo], part_bytes: int
) -> Iterator[tuple[Piece, ...]]:
    """A share in files."""
    kind = _kind_of_first = ""
    part: list[Piece] = []
    filled = 0
    for name, start, stop in itertools.chain.from_iterable(_chopped(*each, tensors, part_bytes) for each in rows):
        info, kind = tensors[name], name.split(".", 1)[0]
        size = (stop - start) * info.row_bytes
        if part and (filled + size > part_bytes or kind != _kind_of_first):
            yield tuple(part)
            part, filled = [], 0
        _kind_of_first = kind
        part.append(Piece(name, start, stop, stop - start == info.rows))
        filled += size
    if part:
        yield tuple(part)


def _chopped(
    name: str, start: int, stop: int, tensors: Mapping[str, TensorInfo], part_bytes: int
) -> Iterator[tuple[str, int, int]]:
    """Rows in lots that fit a file."""
    row_bytes = tensors[name].row_bytes
    count = max(1, -(-(stop - start) * row_bytes // part_bytes))
    rows = max(1, -(-(stop - start) // count))
    if stop == start:
        yield name, start, stop
    for first in range(start, stop, rows):
        yield name, first, min(first + rows, stop)


def _laid_out(pieces: Sequence[Piece], tensors: Mapping[str, TensorInfo]) -> PartLayout:
    """The header of a safetensors file, and so where everything goes. Large elements first: all are aligned."""
    ordered = sorted(pieces, key=lambda piece: (-ITEM_BYTES[tensors[piece.name].dtype], piece.key))
    entries: dict[str, object] = {}
    ends = [0]
    for piece in ordered:
        info = tensors[piece.name]
        ends.append(ends[-1] + (piece.stop - piece.start) * info.row_bytes)
        shape = [piece.stop - piece.start, *info.shape[1:]] if info.shape else []
        entries[piece.key] = {"dtype": info.dtype, "shape": shape, "data_offsets": ends[-2:]}
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-(8 + len(body)) % _ALIGNED)
    header = len(body).to_bytes(8, "little") + body
    return PartLayout(tuple(ordered), header, tuple(len(header) + end for end in ends[:-1]), len(header) + ends[-1])

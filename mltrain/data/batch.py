"""What a loader hands to a model."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mltrain.data.schema import ROW_NUMBER, Schema

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Lists of different length, one a row.

    Attributes:
        values: the elements of all rows, one after the other.
        offsets: ``[rows + 1]`` int64: row i has ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: "torch.Tensor"
    offsets: "torch.Tensor"

    def clone(self) -> "Ragged":
        """A copy with memory of its own."""
        return Ragged(self.values.clone(), self.offsets.clone())


@dataclasses.dataclass(frozen=True)
class Batch:
    """One rank's share of one step.

    Tensors are views of the loader's buffers, which are used again: they are valid until the second batch after this
    one is taken. :meth:`clone` makes a copy that lasts.

    Attributes:
        schema: the columns; with ``Loader(columns=...)`` those that were selected.
        layout: all columns, as matrices pack them.
        matrices: dtype to packed columns ``[rows, width]``, features first.
        ragged: ragged columns.
        row_numbers: ``[rows]`` int64 canonical row numbers, on request.
        rows: rows in this share; may be 0.
        global_rows: rows of the whole step, over all ranks.
        epoch: of this step.
        step: its number in the epoch.
    """

    schema: Schema
    layout: Schema
    matrices: Mapping[str, "torch.Tensor"]
    ragged: Mapping[str, Ragged]
    row_numbers: "torch.Tensor | None"
    rows: int
    global_rows: int
    epoch: int
    step: int

    def __getitem__(self, name: str) -> "torch.Tensor | Ragged":
        """A column: ``[rows]``, ``[rows, width]`` for wide ones, :class:`Ragged`; ``"__row__"`` for row numbers."""
        if name == ROW_NUMBER:
            if self.row_numbers is None:
                raise KeyError("row numbers were not asked for: Loader(..., row_numbers=True)")
            return self.row_numbers
        if name in self.ragged:
            return self.ragged[name]
        if name not in self.schema or self.schema.column(name).carried:
            known = [column.name for column in self.schema.columns if not column.carried]
            raise KeyError(f"the batch has no column {name!r}; it has {known}")
        return self._fixed(name)

    @property
    def labels(self) -> dict[str, "torch.Tensor"]:
        """Task name to targets: ``[rows]``, or ``[rows, classes]`` for multilabel ones."""
        return {name: self._fixed(name) for name in self.schema.labels}

    @property
    def weight(self) -> "torch.Tensor | None":
        """``[rows]`` sample weights, None where the dataset has none."""
        return None if self.schema.weight is None else self._fixed(self.schema.weight.name)

    @property
    def numeric(self) -> "torch.Tensor":
        """``[rows, n]`` float32: the columns of ``schema.numeric`` (vectors flattened), one view."""
        return self.matrix("float32")

    @property
    def categorical(self) -> "torch.Tensor":
        """``[rows, n]`` int32: the columns of ``schema.categorical``, one view."""
        return self.matrix("int32")

    def matrix(self, dtype: str) -> "torch.Tensor":
        """``[rows, n]``: all selected features of a dtype, side by side; n is 0 where there are none.

        A view, unless ``Loader(columns=...)`` selected features that do not lie side by side.
        """
        import torch

        packed = self.matrices.get(dtype)
        if packed is None:
            return torch.empty((self.rows, 0), dtype=getattr(torch, dtype))
        slices = self._slices(dtype)
        wanted = [slices[c.name] for c in self.schema.features if c.name in slices]
        if not wanted:
            return packed[:, :0]
        if all(left.stop == right.start for left, right in itertools.pairwise(wanted)):
            return packed[:, wanted[0].start : wanted[-1].stop]
        return torch.cat([packed[:, where] for where in wanted], dim=1)

    def clone(self) -> "Batch":
        """A copy with memory of its own."""
        return dataclasses.replace(
            self,
            matrices={dtype: matrix.clone() for dtype, matrix in self.matrices.items()},
            ragged={name: column.clone() for name, column in self.ragged.items()},
            row_numbers=None if self.row_numbers is None else self.row_numbers.clone(),
        )

    def to(self, device: Any, *, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""

        def moved(tensor: "torch.Tensor") -> "torch.Tensor":
            return tensor.to(device, non_blocking=non_blocking)

        return dataclasses.replace(
            self,
            matrices={dtype: moved(matrix) for dtype, matrix in self.matrices.items()},
            ragged={name: Ragged(moved(column.values), moved(column.offsets)) for name, column in self.ragged.items()},
            row_numbers=None if self.row_numbers is None else moved(self.row_numbers),
        )

    def tensors(self) -> list["torch.Tensor"]:
        """All tensors that hold the batch's data."""
        numbers = [] if self.row_numbers is None else [self.row_numbers]
        return [*self.matrices.values(), *(t for c in self.ragged.values() for t in (c.values, c.offsets)), *numbers]

    def _slices(self, dtype: str) -> Mapping[str, slice]:
        return self.layout.matrices[dtype].slices

    def _fixed(self, name: str) -> "torch.Tensor":
        column = self.schema.column(name)
        where = self._slices(column.dtype)[name]
        packed = self.matrices[column.dtype]
        return packed[:, where.start] if column.width == 1 else packed[:, where]

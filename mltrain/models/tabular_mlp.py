"""A multi-layer perceptron over numeric columns and embeddings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mltrain.evaluate.tasks import Task, tasks

if TYPE_CHECKING:
    from mltrain.data import Batch, Schema


def tabular_mlp(
    schema: "Schema",
    *,
    hidden: Sequence[int] = (256, 128),
    dropout: float = 0.0,
    embedding_dim: int | None = None,
    normalise: bool = True,
) -> nn.Module:
    """Builds the model for ``schema``.

    Args:
        schema: of the dataset: its features become inputs, its labels outputs.
        hidden: widths of the hidden layers.
        dropout: probability of dropping a hidden unit.
        embedding_dim: width of every embedding; None takes ``min(64, 1.6 * cardinality ** 0.56)``.
        normalise: layer normalisation before each hidden activation (never BatchNorm, whose statistics depend on the
            number of workers).
    """
    return TabularMLP(schema, tuple(hidden), dropout, embedding_dim, normalise)


class TabularMLP(nn.Module):
    """See `tabular_mlp`. ``forward`` returns logits ``[rows, outputs]`` by task name."""

    def __init__(
        self, schema: "Schema", hidden: tuple[int, ...], dropout: float, embedding_dim: int | None, normalise: bool
    ) -> None:
        super().__init__()
        self._tasks: tuple[Task, ...] = tasks(schema)
        if not schema.features:
            raise ValueError("the dataset has no features")
        self._lists = [column.name for column in schema.features if column.ragged]
        cardinalities = [int(column.cardinality or 1) for column in schema.categorical]
        widths = [_width(cardinality, embedding_dim) for cardinality in cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(c, w) for c, w in zip(cardinalities, widths, strict=True))
        bags = [int(schema.column(name).cardinality or 1) for name in self._lists]
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(c, _width(c, embedding_dim), mode="mean", padding_idx=0) for c in bags
        )
        self._has_numeric = bool(schema.numeric)
        width = (
            sum(column.width for column in schema.numeric)
            + sum(widths)
            + sum(bag.embedding_dim for bag in self._bags())
        )
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size)]
            layers += [nn.LayerNorm(size)] if normalise else []
            layers += [nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout > 0 else []
            width = size
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {f"task_{index}": nn.Linear(width, task.outputs) for index, task in enumerate(self._tasks)}
        )
        for embedding in (*self.embeddings, *self.bags):
            nn.init.normal_(embedding.weight, std=0.05)

    def forward(self, batch: "Batch") -> dict[str, Tensor]:
        parts: list[Tensor] = [batch.numeric] if self._has_numeric else []
        if len(self.embeddings):
            ids = batch.categorical
            parts += [embedding(ids[:, index]) for index, embedding in enumerate(self.embeddings)]
        for name, bag in zip(self._lists, self.bags, strict=True):
            ragged = batch.ragged[name]
            parts.append(bag(ragged.values.long(), ragged.offsets[:-1].long()))
        hidden = self.body(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return {task.name: self.heads[f"task_{index}"](hidden) for index, task in enumerate(self._tasks)}

    def _bags(self) -> list[nn.EmbeddingBag]:
        return [bag for bag in self.bags if isinstance(bag, nn.EmbeddingBag)]


def _width(cardinality: int, fixed: int | None) -> int:
    return fixed if fixed is not None else max(2, min(64, round(1.6 * cardinality**0.56)))

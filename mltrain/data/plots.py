"""A dataset at a glance, as PNG: rows per shard, label balance, and what its columns hold. From the manifest alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mltrain.data.dataset import Dataset
from mltrain.data.schema import Column
from mltrain.data.statistics import ColumnStatistics
from mltrain.errors import RequestError
from mltrain.results import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More classes or columns than this do not fit into a panel.
_SHOWN = 20
_WIDE = 100


def plot(dataset: Dataset, file: str | Path) -> Path:
    """Draws a dataset.

    Panels: rows of each shard, a line a split; of each label the share of rows of each class (of a regression label:
    mean, least and greatest value), split by split; of numeric features mean, least and greatest value as stored; and
    of features that are ids the share that is 0, unseen or missing. Of more than 20 classes or columns 20 are shown:
    the most frequent classes, the ids with most zeros, the first numbers.

    Args:
        dataset: what to draw.
        file: the picture, ``*.png``.

    Returns:
        The file.

    Raises:
        RequestError: no name of a PNG file, or it cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    target = Path(file)
    if target.suffix.lower() != ".png":
        raise RequestError(f"the picture is to be {target.name!r}: plots are PNG files, name it *.png")
    first = dataset.splits[0]
    statistics = dataset.manifest.split(first).statistics
    features = [column for column in dataset.schema.features if column.name in statistics]
    numbers = [column.name for column in features if column.cardinality is None]
    ids = [column.name for column in features if column.cardinality is not None]
    labels = list(dataset.schema.labels.values())
    figure = figures.figure(panels := 1 + len(labels) + bool(numbers) + bool(ids))
    axes = iter(figure.subplots(*figures.grid(panels), squeeze=False).flatten())
    _shards(next(axes), dataset)
    for label in labels:
        _label(next(axes), dataset, label)
    if numbers:
        _ranges(next(axes), numbers[:_SHOWN], [statistics[name] for name in numbers[:_SHOWN]])
        figure.axes[1 + len(labels)].set_title(_title(f"numeric features of {first}", len(numbers)))
    if ids:
        _zeros(next(axes), dataset, ids)
    for axis in axes:
        axis.remove()
    handles = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if len(dataset.splits) > 1:
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize="small")
    rows = ", ".join(f"{split} {dataset.rows(split):,}" for split in dataset.splits)
    figure.suptitle(f"{dataset.name or dataset.digest[:16]}: {rows} rows", fontsize="medium")
    return figures.save(figure, target)


def _shards(axis: "Axes", dataset: Dataset) -> None:
    for number, split in enumerate(dataset.splits):
        rows = dataset.manifest.index.rows[dataset.manifest.shards(split)]
        marker = "." if len(rows) < 50 else None
        axis.plot(range(len(rows)), rows, color=f"C{number}", label=split, marker=marker, drawstyle="steps-mid")
    axis.set(title="rows per shard", xlabel="shard of its split")
    axis.set_ylim(bottom=0)
    axis.locator_params("x", integer=True)


def _label(axis: "Axes", dataset: Dataset, label: Column) -> None:
    found = {split: dataset.manifest.split(split).statistics.get(label.name) for split in dataset.splits}
    counted = {split: seen for split, seen in found.items() if seen is not None}
    if label.classes is None:
        _ranges(axis, list(counted), list(counted.values()))
        axis.set_title(f"label {label.name}")
        return
    totals = np.sum([np.asarray(seen.classes) for seen in counted.values()], axis=0)
    chosen = sorted(np.argsort(-totals, kind="stable")[:_SHOWN])
    width = 0.8 / max(1, len(counted))
    for number, (split, seen) in enumerate(counted.items()):
        shares = np.asarray(seen.classes)[chosen] / max(1, dataset.rows(split))
        places = np.arange(len(chosen)) + width * (number - (len(counted) - 1) / 2)
        axis.bar(places, shares, width, color=f"C{number}", label=split)
    axis.set_xticks(range(len(chosen)), [_short(label.classes[place]) for place in chosen])
    if len(chosen) > 5:
        axis.tick_params("x", rotation=90, labelsize="x-small")
    axis.set(title=_title(f"label {label.name}", len(totals)), ylabel="share of rows")


def _ranges(axis: "Axes", names: Sequence[str], statistics: Sequence[ColumnStatistics]) -> None:
    """A dot at the mean of each, a bar from least to greatest."""
    seen = [(place, one) for place, one in enumerate(statistics) if one.minimum is not None]
    places = [place for place, _ in seen]
    means = np.array([one.mean for _, one in seen])
    least, most = np.array([one.minimum for _, one in seen]), np.array([one.maximum for _, one in seen])
    # A mean of equal values can lie beside them by a rounding.
    sides = np.maximum([means - least, most - means], 0)
    axis.errorbar(means, places, xerr=sides, fmt="o", color="0.2", ecolor="0.6", markersize=4, capsize=2)
    if np.abs([least, most]).max(initial=0) > _WIDE:
        # One wide column would make dots of all others.
        axis.set_xscale("symlog", linthresh=1)
        low, high = axis.get_xlim()
        axis.set_xticks(_powers(low, high))
    _names(axis, names)
    axis.set(xlabel="least, mean, greatest")


def _powers(low: float, high: float) -> list[float]:
    """At most seven ticks of a symmetric logarithmic scale, linear up to 1: 0, and powers of ten either side."""
    sides = [int(np.log10(max(1.0, side))) for side in (-low, high)]
    step = max(1, -(-sum(sides) // 6))
    powers = [[10.0**power for power in range(step, side + 1, step)] for side in sides]
    return [*(-power for power in reversed(powers[0])), 0.0, *powers[1]]


def _zeros(axis: "Axes", dataset: Dataset, ids: Sequence[str]) -> None:
    shares = {name: [_zero_share(dataset, split, name) for split in dataset.splits] for name in ids}
    chosen = sorted(ids, key=lambda name: -max(shares[name]))[:_SHOWN]
    width = 0.8 / len(dataset.splits)
    for number, split in enumerate(dataset.splits):
        places = np.arange(len(chosen)) + width * (number - (len(dataset.splits) - 1) / 2)
        axis.barh(places, [shares[name][number] for name in chosen], width, color=f"C{number}", label=split)
    _names(axis, chosen)
    axis.set(title=_title("ids unseen or missing", len(ids)), xlabel="share")
    axis.set_xlim(left=0)


def _zero_share(dataset: Dataset, split: str, name: str) -> float:
    seen = dataset.manifest.split(split).statistics.get(name)
    return seen.zeros / seen.count if seen is not None and seen.count else 0.0


def _names(axis: "Axes", names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    axis.tick_params("y", labelsize="x-small" if len(names) > 8 else "small")
    axis.invert_yaxis()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:19] + "…"


def _title(text: str, count: int) -> str:
    return f"{text}, {_SHOWN} of {count}" if count > _SHOWN else text

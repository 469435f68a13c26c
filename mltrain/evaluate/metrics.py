"""Exact metrics of scores against labels, with sample weights, in numpy (scores of all rows, float64 sums).

torchmetrics is used for a user's own metrics only: importing it takes 3 s, and its ranking metrics take no weights.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_EPSILON = 1e-7


def metrics(
    type_: str, scores: NDArray[np.float32], labels: NDArray[np.generic], weights: Array | None
) -> dict[str, float]:
    """Metrics of one task.

    Args:
        type_: the label's type.
        scores: probabilities or values, ``[rows]`` or ``[rows, classes]``.
        labels: ``[rows]``, or ``[rows, classes]`` for multilabel.
        weights: ``[rows]``, or None for all ones.

    Returns:
        binary: auc, auc_pr, log_loss, accuracy; multiclass: accuracy, log_loss, macro_f1; multilabel: auc and auc_pr
        (means over the classes that have both), log_loss, accuracy; regression: rmse, mae, r2. What is undefined (auc
        of one class) is NaN.
    """
    weight = np.ones(len(scores)) if weights is None else weights.astype(np.float64)
    return _BY_TYPE[type_](scores.astype(np.float64), labels, weight)


def auc(scores: Array, positive: NDArray[np.bool_], weight: Array) -> float:
    """Area under the ROC curve: the weighted share of pairs in the right order, ties counting half."""
    gains, losses = _by_threshold(scores, positive, weight)
    if gains[-1] <= 0 or losses[-1] <= 0:
        return float("nan")
    true_rate = np.concatenate(([0.0], gains / gains[-1]))
    false_rate = np.concatenate(([0.0], losses / losses[-1]))
    return float(np.sum(np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2))


def average_precision(scores: Array, positive: NDArray[np.bool_], weight: Array) -> float:
    """Area under the precision-recall curve as average precision (no interpolation)."""
    gains, losses = _by_threshold(scores, positive, weight)
    if gains[-1] <= 0:
        return float("nan")
    precision = gains / np.maximum(gains + losses, np.finfo(np.float64).tiny)
    return float(np.sum(np.diff(np.concatenate(([0.0], gains / gains[-1]))) * precision))


def _by_threshold(scores: Array, positive: NDArray[np.bool_], weight: Array) -> tuple[Array, Array]:
    """Cumulative weight of positives and negatives with scores at or above each distinct score, descending."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.where(positive, weight, 0.0)[order]
    return np.cumsum(hits)[last], np.cumsum(weight[order] - hits)[last]


def _binary(scores: Array, labels: NDArray[np.generic], weight: Array) -> dict[str, float]:
    scores, positive = scores.reshape(-1), labels.reshape(-1).astype(bool)
    return {
        "auc": auc(scores, positive, weight),
        "auc_pr": average_precision(scores, positive, weight),
        "log_loss": _mean(_cross_entropy(scores, positive), weight),
        "accuracy": _mean((scores >= 0.5) == positive, weight),
    }


def _multiclass(scores: Array, labels: NDArray[np.generic], weight: Array) -> dict[str, float]:
    label = labels.reshape(-1).astype(np.int64)
    right = scores[np.arange(len(label)), label]
    predicted = scores.argmax(1)
    return {
        "log_loss": _mean(-np.log(np.clip(right, _EPSILON, None)), weight),
        "accuracy": _mean(predicted == label, weight),
        "macro_f1": _macro_f1(predicted, label, weight, scores.shape[1]),
    }


def _macro_f1(predicted: NDArray[np.int64], label: NDArray[np.int64], weight: Array, classes: int) -> float:
    both = np.bincount(label[predicted == label], weight[predicted == label], classes)
    either = np.bincount(label, weight, classes) + np.bincount(predicted, weight, classes)
    seen = either > 0
    return float(np.mean(2 * both[seen] / either[seen]))


def _multilabel(scores: Array, labels: NDArray[np.generic], weight: Array) -> dict[str, float]:
    positive = labels.reshape(scores.shape).astype(bool)
    columns = range(scores.shape[1])
    return {
        "auc": _mean_defined([auc(scores[:, c], positive[:, c], weight) for c in columns]),
        "auc_pr": _mean_defined([average_precision(scores[:, c], positive[:, c], weight) for c in columns]),
        "log_loss": _mean(_cross_entropy(scores, positive).mean(1), weight),
        "accuracy": _mean(((scores >= 0.5) == positive).mean(1), weight),
    }


def _regression(scores: Array, labels: NDArray[np.generic], weight: Array) -> dict[str, float]:
    label = labels.reshape(-1).astype(np.float64)
    error = scores.reshape(-1) - label
    spread = _mean((label - _mean(label, weight)) ** 2, weight)
    squared = _mean(error**2, weight)
    return {
        "rmse": float(np.sqrt(squared)),
        "mae": _mean(np.abs(error), weight),
        "r2": 1.0 - squared / spread if spread > 0 else float("nan"),
    }


def _cross_entropy(scores: Array, positive: NDArray[np.bool_]) -> Array:
    clipped = np.clip(scores, _EPSILON, 1 - _EPSILON)
    return np.asarray(-np.where(positive, np.log(clipped), np.log1p(-clipped)))


def _mean(values: NDArray[np.generic], weight: Array) -> float:
    total = float(weight.sum())
    return float(np.dot(values.astype(np.float64), weight) / total) if total > 0 else float("nan")


def _mean_defined(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


_BY_TYPE: dict[str, Callable[[Array, NDArray[np.generic], Array], dict[str, float]]] = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
}

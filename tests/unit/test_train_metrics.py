"""Metrics beside scikit-learn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.config.metrics import label_metrics
from mltrain.evaluate.metrics import metrics

# Together, so that one process loads scikit-learn, which takes longer than these tests.
pytestmark = pytest.mark.xdist_group("sklearn")


@pytest.fixture(scope="module")
def reference() -> Any:
    from sklearn import metrics as found

    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.integers(0, 1 << 30), st.booleans(), st.booleans())
def test_binary_metrics_equal_the_references(reference: Any, rows: int, seed: int, weighted: bool, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(rows).astype(np.float32)
    scores = np.round(scores, 1) if ties else scores
    labels = np.concatenate([[0, 1], rng.integers(0, 2, rows - 2)])
    weights = rng.uniform(0.1, 3.0, rows) if weighted else None
    found = metrics("binary", scores, labels, weights)
    assert found["auc"] == pytest.approx(reference.roc_auc_score(labels, scores, sample_weight=weights))
    assert found["auc_pr"] == pytest.approx(reference.average_precision_score(labels, scores, sample_weight=weights))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, scores >= 0.5, sample_weight=weights))
    clipped = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, clipped, sample_weight=weights))


def test_auc_of_a_single_class_is_undefined() -> None:
    assert np.isnan(metrics("binary", np.array([0.1, 0.9], np.float32), np.array([1, 1]), None)["auc"])


def test_multiclass_metrics_equal_the_references(reference: Any) -> None:
    rng = np.random.default_rng(1)
    scores = rng.dirichlet(np.ones(3), 300).astype(np.float32)
    labels = rng.integers(0, 3, 300)
    found = metrics("multiclass", scores, labels, None)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, scores.argmax(1)))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, scores.argmax(1), average="macro"))
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, scores), rel=1e-5)


def test_multilabel_metrics_are_means_over_the_classes(reference: Any) -> None:
    rng = np.random.default_rng(2)
    scores = rng.random((200, 4)).astype(np.float32)
    labels = rng.integers(0, 2, (200, 4))
    found = metrics("multilabel", scores, labels, None)
    assert found["auc"] == pytest.approx(reference.roc_auc_score(labels, scores, average="macro"))
    assert found["auc_pr"] == pytest.approx(reference.average_precision_score(labels, scores, average="macro"))


def test_regression_metrics_equal_the_references(reference: Any) -> None:
    rng = np.random.default_rng(3)
    labels = rng.standard_normal(100)
    scores = (labels + 0.1 * rng.standard_normal(100)).astype(np.float32)
    weights = rng.uniform(0.5, 2.0, 100)
    found = metrics("regression", scores, labels, weights)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(labels, scores, sample_weight=weights))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(labels, scores, sample_weight=weights))
    assert found["r2"] == pytest.approx(reference.r2_score(labels, scores, sample_weight=weights))


@pytest.mark.parametrize(("type_", "columns"), [("binary", 1), ("multiclass", 3), ("multilabel", 3), ("regression", 1)])
def test_the_names_of_a_types_metrics_are_known_before_there_are_any(type_: str, columns: int) -> None:
    scores = np.full((4, columns), 0.5, np.float32)
    labels = np.zeros((4, columns) if type_ == "multilabel" else 4)
    assert list(metrics(type_, scores, labels, None)) == label_metrics({"y": type_})

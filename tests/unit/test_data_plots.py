import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mltrain.cli.app import run
from mltrain.data import Dataset
from mltrain.data.plots import _ranges, plot
from mltrain.data.statistics import ColumnStatistics
from mltrain.errors import MissingDependencyError, RequestError
from mltrain.results import figures as results_figures
from tests.support.datasets import SPLITS, Features, make_dataset
from tests.unit.test_results_plots import PNG, figures

__all__ = ["figures"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    features = Features(numeric=3, categorical=30, label="multiclass")
    return make_dataset(tmp_path_factory.mktemp("root"), rows=400, shards=5, features=features)


def panels(figures: list[Figure]) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figures[-1].axes}


def heights(axis: Axes) -> dict[str, list[float]]:
    return {str(bars.get_label()): [bar.get_height() for bar in bars] for bars in axis.containers}


def test_a_dataset_is_drawn_split_by_split(tmp_path: Path, dataset: Dataset, figures: list[Figure]) -> None:
    assert plot(dataset, tmp_path / "new" / "a.png").read_bytes().startswith(PNG)
    drawn = panels(figures)
    assert list(drawn) == ["rows per shard", "label y", "numeric features of train", "ids unseen or missing, 20 of 30"]
    lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in drawn["rows per shard"].lines}
    assert {split: sum(rows) for split, rows in lines.items()} == {split: dataset.rows(split) for split in SPLITS}
    assert len(lines["train"]) == 5
    for split, shares in heights(drawn["label y"]).items():
        labels = dataset.read(split, ["y"])["y"].to_numpy()
        np.testing.assert_allclose(shares, np.bincount(labels, minlength=3) / len(labels))
    assert [label.get_text() for label in drawn["label y"].get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in figures[-1].legends[0].get_texts()] == list(SPLITS)


def test_columns_are_drawn_with_their_range_and_their_zeros(
    tmp_path: Path, dataset: Dataset, figures: list[Figure]
) -> None:
    plot(dataset, tmp_path / "a.png")
    drawn = panels(figures)
    means = drawn["numeric features of train"].lines[0]
    (ranges,) = drawn["numeric features of train"].collections
    assert isinstance(ranges, LineCollection)
    stored = dataset.read("train", ["x0", "x1", "x2"]).to_pandas()
    np.testing.assert_allclose(np.asarray(means.get_xdata()), stored.mean(), atol=1e-6)
    ends = [segment[:, 0] for segment in ranges.get_segments()]
    np.testing.assert_allclose(ends, np.stack([stored.min(), stored.max()], axis=1), atol=1e-6)
    zeros = drawn["ids unseen or missing, 20 of 30"]
    names = [label.get_text() for label in zeros.get_yticklabels()]
    shown = [bar.get_width() for bar in zeros.containers[0]]
    np.testing.assert_allclose(shown, (dataset.read("train", names).to_pandas() == 0).mean())


def test_a_regression_label_is_drawn_as_a_range_a_split(tmp_path: Path, figures: list[Figure]) -> None:
    features = Features(numeric=1, categorical=0, label="regression")
    plot(make_dataset(tmp_path, rows=200, features=features), tmp_path / "a.PNG")
    drawn = panels(figures)
    assert list(drawn) == ["rows per shard", "label y", "numeric features of train"]
    assert [label.get_text() for label in drawn["label y"].get_yticklabels()] == list(SPLITS)


@pytest.mark.parametrize("ends", [(-3e9, 5e12), (0.0, 2e38), (-200.0, 0.5), (-1e6, 1e6)])
def test_the_ticks_of_wide_ranges_do_not_overlap(ends: tuple[float, float]) -> None:
    figure = results_figures.figure(3)
    axis = figure.subplots(1, 3)[0]
    low, high = ends
    _ranges(axis, ["x"], [ColumnStatistics(2, low, high, low + high, 0)])
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
    boxes.sort(key=lambda box: box.x0)
    assert 2 <= len(boxes) <= 7
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize(("name", "wanted"), [("a.pdf", "name it *.png"), ("file/a.png", "cannot be written")])
def test_a_picture_that_cannot_be_is_refused(tmp_path: Path, dataset: Dataset, name: str, wanted: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError) as refused:
        plot(dataset, tmp_path / name)
    assert wanted in str(refused.value)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"mltrain\[notebook\]"):
        plot(dataset, tmp_path / "a.png")


def test_show_draws_on_request(tmp_path: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dataset", "show", "made", "--root", dataset.store.uri]
    picture = tmp_path / "a.png"

    def shown(*more: str) -> Any:
        assert run([*words, *more, "--output", "json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert "plot" not in shown()
    assert shown("--plot", str(picture))["plot"] == str(picture)
    assert picture.exists()
    assert run([*words, "--plot", str(tmp_path / "a.pdf")]) == 2
    assert "name it *.png" in capsys.readouterr().err

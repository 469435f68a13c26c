"""Schedules, intervals, early stopping, checkpoint bookkeeping, and what rides along with gradients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mltrain.errors import ConfigError, DamagedError
from mltrain.storage import open_store
from mltrain.train.checkpoints import Checkpoint, Part
from mltrain.train.interval import LONGEST_S, SHORTEST_S, checkpoint_interval_s
from mltrain.train.reducer import Tally, _decode, _encode
from mltrain.train.run import kept
from mltrain.train.schedule import factor
from mltrain.train.spec import evaluation_split, total_steps
from mltrain.train.step import hash_rows
from mltrain.train.stopping import Patience
from mltrain.train.usercode import ship


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_warm_up_to_one_and_end_where_they_should(name: str) -> None:
    rates = [factor(name, step, 100, warmup_steps=9) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(1.0 if name == "constant" else 0.0)


def test_an_unknown_schedule_is_a_mistake() -> None:
    with pytest.raises(ValueError):
        factor("wavy", 50, 100)


@given(st.floats(0, 1e4), st.integers(0, 1000), st.floats(0, 1e7))
def test_the_interval_is_youngs_within_its_bounds(cost_s: float, losses: int, observed_s: float) -> None:
    found = checkpoint_interval_s(cost_s, losses, observed_s)
    assert SHORTEST_S <= found <= LONGEST_S
    assert checkpoint_interval_s(cost_s, losses + 1, observed_s) <= found
    young = math.sqrt(2 * cost_s * (observed_s + 3600) / (losses + 1))
    assert found == pytest.approx(min(LONGEST_S, max(SHORTEST_S, young)))


def test_patience_counts_evaluations_without_a_better_one() -> None:
    patience = Patience()
    for value, expected in [(0.5, 0), (0.505, 1), (float("nan"), 2), (0.6, 0), (0.6, 1)]:
        patience = patience.after(value, "max", 0.01)
        assert patience.evaluations == expected
    assert patience.best == 0.6


tallies = st.builds(
    Tally,
    stop=st.integers(0, 1),
    checkpoint=st.integers(0, 1),
    rows=st.integers(0, 1 << 31),
    loss=st.floats(-1e6, 1e6),
    weight=st.floats(0, 1e9),
    samples=st.integers(0, (1 << 64) - 1),
)


@given(st.lists(tallies, min_size=1, max_size=64))
def test_tallies_add_up_exactly_in_single_precision(given_: list[Tally]) -> None:
    vectors = [
        _encode(tally, torch.tensor([tally.loss, tally.weight], dtype=torch.float64)).numpy() for tally in given_
    ]
    total = _decode([float(value) for value in np.asarray(np.sum(vectors, axis=0, dtype=np.float32))])
    assert total.rows == sum(tally.rows for tally in given_)
    assert total.samples == sum(tally.samples for tally in given_) % (1 << 64)
    assert total.stop == sum(tally.stop for tally in given_)
    assert total.checkpoint == sum(tally.checkpoint for tally in given_)
    assert total.nonfinite == 0
    scale = sum(abs(tally.loss) for tally in given_) + 1e-9
    assert abs(total.loss - sum(tally.loss for tally in given_)) <= 1e-6 * scale


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_counted_and_spoils_no_sum(loss: float) -> None:
    total = _decode(_encode(Tally(rows=7), torch.tensor([loss, 7.0], dtype=torch.float64)).tolist())
    assert (total.nonfinite, total.loss, total.weight, total.rows) == (1, 0.0, 0.0, 7)


@given(st.lists(st.integers(0, 1 << 40), unique=True, min_size=2), st.randoms())
def test_the_hash_of_rows_depends_on_the_rows_and_not_on_their_order(rows: list[int], random: object) -> None:
    whole = hash_rows(np.array(rows, np.int64))
    half = len(rows) // 2
    parts = hash_rows(np.array(rows[half:], np.int64)) + hash_rows(np.array(rows[:half], np.int64))
    assert parts % (1 << 64) == whole
    assert hash_rows(np.array(rows[1:] + rows[1:2], np.int64)) != whole


def manifest() -> Checkpoint:
    return Checkpoint(
        run_id="r",
        step=3,
        epoch=0,
        driver_epoch=1,
        generation=2,
        parts=(Part("p", 0, 4, "ab", ("model.w",)),),
        state={"step": 3, "patience": {"best": None}},
        loader={"epoch": 0, "step": 3},
        config_digest="c",
        dataset_digest="d",
        dataset_build=None,
        created="2026-01-01T00:00:00+00:00",
        metrics={"validation/auc": 0.5},
    )


def test_a_manifest_reads_back_and_its_digest_is_of_its_content() -> None:
    data = manifest().to_bytes()
    assert Checkpoint.from_bytes(data, "m") == manifest()
    assert Checkpoint.from_bytes(data, "m").digest == manifest().digest


def test_a_run_that_stops_says_what_it_goes_on_from() -> None:
    assert kept(None, 0) == "without a checkpoint"
    assert kept(manifest(), 3) == "with a checkpoint"
    assert kept(manifest(), 7) == "with a checkpoint after step 3"


@given(st.data())
def test_a_manifest_with_any_changed_byte_is_damaged(data: st.DataObject) -> None:
    content = bytearray(manifest().to_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    try:
        read = Checkpoint.from_bytes(bytes(content), "m")
    except DamagedError:
        return
    # White space between values is the only thing that a checksum over values leaves out.
    assert read == manifest()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{"], ids=["deep", "list", "cut"])
def test_a_manifest_that_is_no_json_object_is_damaged(content: bytes) -> None:
    with pytest.raises(DamagedError, match="manifest m"):
        Checkpoint.from_bytes(content, "m")


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(3, None, 30), (None, 7, 7), (3, 7, 7), (1, 50, 10), (None, None, 10)]
)
def test_a_training_ends_with_its_epochs_or_steps(epochs: int | None, max_steps: int | None, expected: int) -> None:
    assert total_steps(epochs, max_steps, 10) == expected


def test_the_objective_says_which_split_is_evaluated() -> None:
    assert evaluation_split("validation/auc", ["train", "validation"]) == "validation"
    assert evaluation_split("train/loss", ["train", "validation"]) == "validation"
    assert evaluation_split("train/loss", ["train"]) is None


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("./nowhere.py:build", "no file"),
        ("no.such.module:build", "imported|no module"),
        ("mltrain.nothing:build", "no module"),
        ("justaname", "wanted"),
    ],
)
def test_a_factory_that_is_not_there_is_refused(factory: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ship(factory)


def test_a_factory_file_without_the_function_is_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/model.py"
    with open(path, "w") as file:
        file.write("def make(schema):\n    return None\n")
    with pytest.raises(ConfigError, match="no function 'build'; it has make"):
        ship(f"{path}:build")
    with open(path, "w") as file:
        file.write("def build(schema:\n")
    with pytest.raises(ConfigError, match="line 1"):
        ship(f"{path}:build")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{}", b"{"], ids=["deep", "empty", "cut"])
def test_a_damaged_record_of_a_runs_code_is_named(tmp_path: Path, content: bytes) -> None:
    run = open_store(tmp_path)
    run.put("code/factory.json", content)
    with pytest.raises(DamagedError, match=r"code/factory.json"):
        ship("mltrain.models:tabular_mlp").keep(run)

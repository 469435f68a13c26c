"""Checkpoints: how tensors are spread over files, what is committed, restored, kept and collected."""

import itertools
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mltrain.errors import DamagedError, RequestError, TrainingError
from mltrain.storage import ObjectMeta, open_store
from mltrain.storage.lease import fence
from mltrain.train import checkpoints, layout
from mltrain.train.checkpoints import Checkpoint, read_tensors
from mltrain.train.layout import ITEM_BYTES, PartLayout, TensorInfo
from tests.support.saving import METRIC, Ranks, nothing, replica, same

shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)
infos = st.dictionaries(
    st.text("ab.", min_size=1, max_size=6), st.builds(TensorInfo, st.sampled_from(sorted(ITEM_BYTES)), shapes)
)


@given(infos, st.integers(1, 9), st.sampled_from([64, 1000, 1 << 20]))
def test_every_row_is_written_by_one_rank_and_the_shares_are_even(
    tensors: dict[str, TensorInfo], ranks: int, part_bytes: int
) -> None:
    shares = [layout.share(tensors, rank, ranks, part_bytes) for rank in range(ranks)]
    pieces = [piece for parts in shares for part in parts for piece in part.pieces]
    for name, info in tensors.items():
        mine = sorted((piece.start, piece.stop) for piece in pieces if piece.name == name)
        assert mine[0][0] == 0 and mine[-1][1] == info.rows
        assert all(one[1] == other[0] for one, other in itertools.pairwise(mine))
        assert all(piece.whole == (len(mine) == 1) for piece in pieces if piece.name == name)
    loads = [sum(_data(part) for part in parts) for parts in shares]
    total, row = (
        sum(info.size_bytes for info in tensors.values()),
        max((i.row_bytes for i in tensors.values()), default=0),
    )
    assert sum(loads) == total
    assert max(loads) <= total / ranks * 1.1 + row + 1
    for part in (part for parts in shares for part in parts):
        assert len({piece.name.split(".")[0] for piece in part.pieces}) == 1
        assert _data(part) <= max(part_bytes, row) or len(part.pieces) == 1


def _data(part: PartLayout) -> int:
    return part.size_bytes - len(part.header)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_a_checkpoint_of_so_many_ranks_restores_to_the_last_bit(tmp_path: Path, ranks: int) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(ranks)
        made = driver.save(7)
    assert {part.rank for part in made.parts} == set(range(ranks))
    stored = checkpoints.stored(run)
    assert stored == [made]
    assert same(read_tensors(run, stored[0]), 7)
    assert read_tensors(run, stored[0], "model.").keys() == {name for name in replica(7) if name.startswith("model.")}


def test_weights_load_with_safetensors_alone(tmp_path: Path) -> None:
    with Ranks(open_store(str(tmp_path)), part_bytes=1 << 20) as driver:
        driver.form(1)
        driver.save(2)
    found: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("checkpoints/step-000000002/part-*.safetensors"):
        found |= load_file(file)
    assert same(found, 2)


def test_rows_of_a_tensor_that_was_cut_are_tensors_of_their_own(tmp_path: Path) -> None:
    with Ranks(open_store(str(tmp_path)), part_bytes=200) as driver:
        driver.form(2)
        driver.save(2)
    rows: dict[int, torch.Tensor] = {}
    for file in tmp_path.glob("checkpoints/step-000000002/part-*.safetensors"):
        for key, tensor in load_file(file).items():
            if match := re.fullmatch(r"model\.table\.weight\[(\d+):\d+\]", key):
                rows[int(match[1])] = tensor
    assert len(rows) > 2
    assert torch.equal(torch.cat([rows[start] for start in sorted(rows)]), replica(2)["model.table.weight"])


def test_the_copy_is_what_is_written_whatever_the_next_steps_do(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(2)
        for step in (1, 2, 3):
            tensors = replica(step)
            driver.copy(step, tensors)
            for tensor in tensors.values():
                tensor.zero_()
        while driver.shelf.under_way() is not None:
            driver.take()
        assert sorted(driver.shelf.kept) == [1, 2, 3]
    assert all(same(read_tensors(run, each), each.step) for each in checkpoints.stored(run))


def test_parts_of_two_generations_never_make_one_checkpoint(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(3)
        driver.copy(5)
        for writer in driver.writers:
            writer.wait(nothing)
        late = [driver.messages.get() for _ in range(3)]
        driver.form(2)
        driver.copy(5)
        fresh = [driver.messages.get() for _ in range(2)]
        told = [late[0], late[1], fresh[0], late[2], fresh[1]]
        made = [driver.shelf.take(message, nothing) for message in told]
        assert [each is None for each in made] == [True, True, True, True, False]
        driver.shelf.tidy()
    assert {part.path.split("-")[3] for part in checkpoints.stored(run)[0].parts} == {"00002"}
    assert same(read_tensors(run, checkpoints.stored(run)[0]), 5)
    _nothing_is_left_over(tmp_path, run)


def test_a_step_that_is_saved_again_keeps_what_it_has(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(2)
        first = driver.save(5)
        driver.form(3)
        assert driver.save(5) is first
        driver.save(6)
    assert [c.step for c in checkpoints.stored(run)] == [5, 6]
    _nothing_is_left_over(tmp_path, run)


def test_the_best_and_the_last_ones_stay_and_nothing_else(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run, keep=2) as driver:
        driver.form(2)
        for step in range(1, 8):
            driver.save(step, {METRIC: abs(step - 3.0)})
    assert [c.step for c in checkpoints.stored(run)] == [3, 6, 7]
    assert all(same(read_tensors(run, each), each.step) for each in checkpoints.stored(run))
    _nothing_is_left_over(tmp_path, run)


def _nothing_is_left_over(folder: Path, run: object) -> None:
    """Every file belongs to a checkpoint."""
    stored = checkpoints.stored(open_store(str(folder)))
    wanted = {part.path for each in stored for part in each.parts} | {f"{each.path}/manifest.json" for each in stored}
    assert {str(p.relative_to(folder)) for p in folder.glob("checkpoints/*/*") if not p.name.startswith(".")} == wanted


@given(st.sets(st.integers(0, 1000), min_size=1), st.integers(1, 5), st.integers(0, 1000))
def test_the_best_and_the_last_are_never_deleted(steps: set[int], keep: int, best: int) -> None:
    gone = checkpoints.to_delete(sorted(steps), keep, best)
    left = sorted(steps - set(gone))
    assert left[-keep:] == sorted(steps)[-keep:]
    assert (best in left) == (best in steps)


def test_a_driver_collects_what_no_checkpoint_needs_but_not_of_a_later_driver(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(1)
        made = driver.save(5)
    mine, theirs, future = (
        checkpoints.part_path(step, epoch, 1, 0, 0, "0" * 64) for step, epoch in [(4, 1), (4, 2), (6, 1)]
    )
    old_name = "checkpoints/step-000000003/part-00001-0000-0123456789ab.safetensors"
    listed = [ObjectMeta(path, 1, None, datetime.now(UTC)) for path in (mine, theirs, future, old_name)]
    listed += [ObjectMeta(part.path, 1, None, datetime.now(UTC)) for part in made.parts]
    assert checkpoints.garbage(listed, {5: made}, 1, driver_epoch=1) == [old_name, mine]
    # Of an earlier driver that was paused, and may be about to put its manifest.
    window = {3: made, 5: made}
    assert checkpoints.garbage(listed, window, 2, driver_epoch=2) == [old_name, theirs]
    assert checkpoints.garbage(listed, window, 1, driver_epoch=2) == [old_name, mine, theirs]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_found_and_the_file_named(tmp_path: Path, harm: str) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(2)
        made = driver.save(7)
    file = tmp_path / made.parts[3].path
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if harm == "flip" else content[:-1])
    if harm == "remove":
        file.unlink()
    with pytest.raises(DamagedError, match=re.escape(file.name)):
        read_tensors(run, made)
    state = {"flip": "complete", "cut": "is truncated", "remove": "is missing"}[harm]
    assert [row["step"] for row in checkpoints.inventory(run)] == [7]
    assert state in checkpoints.inventory(run)[0]["state"]


def test_a_controller_that_lost_the_run_acknowledges_nothing(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    driver = Ranks(run)
    driver.form(1)
    driver.save(1)
    driver.copy(2)
    for writer in driver.writers:
        writer.wait(nothing)
    fence(run, "lease.json")
    with pytest.raises(TrainingError, match="Another controller"):
        driver.take()
    assert sorted(driver.shelf.kept) == [1]
    for writer in driver.writers:
        writer.close()


def test_what_a_paused_controller_committed_late_is_replaced_when_its_step_is_saved(tmp_path: Path) -> None:
    run = open_store(str(tmp_path))
    with Ranks(run) as driver:
        driver.form(1)
        driver.save(1)
        foreign = Checkpoint(**{**driver.shelf.kept[1].__dict__, "step": 2, "parts": ()})
        run.put(checkpoints.manifest_path(2), foreign.to_bytes())
        driver.save(2)
    assert same(read_tensors(run, checkpoints.stored(run)[-1]), 2)


def test_a_checkpoint_of_the_first_format_is_read_and_one_of_a_later_version_is_not_called_damaged(
    tmp_path: Path,
) -> None:
    import hashlib
    import json

    run = open_store(str(tmp_path))
    with Ranks(run, part_bytes=1 << 20) as driver:
        driver.form(2)
        driver.save(1)
    path = checkpoints.manifest_path(1)
    body = {key: value for key, value in json.loads(run.get(path)).items() if key not in ("checksum", "tensors")}

    def stored(number: int) -> None:
        parts = [{key: part[key] for key in part if key != "pieces" or number > 1} for part in body["parts"]]
        changed = {**body, "format": number, "parts": parts}
        canonical = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        run.put(path, json.dumps({**changed, "checksum": hashlib.sha256(canonical).hexdigest()}).encode())

    stored(1)
    assert read_tensors(run, checkpoints.stored(run)[0]).keys() >= {"model.seen", "optimizer.0.step"}
    stored(3)
    with pytest.raises(RequestError, match="format 3, this mltrain reads 1 and 2"):
        checkpoints.stored(run)

"""``mltrain dataset gc``: what its options mean, what it prints, and how it ends."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mltrain.cli.app import run
from mltrain.data import Build, Dataset
from mltrain.errors import NotFoundError
from mltrain.storage import Store, open_store
from tests.chaos.garbage import build, store_shards


def gc(root: Path, *options: str) -> int:
    return run(["dataset", "gc", "--root", str(root), *options])


def gc_json(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert gc(root, "--output", "json", *options) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def objects(store: Store) -> set[str]:
    return {meta.path for meta in store.list("shards") if meta.path != "shards/gc.json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of two shards, and two that nothing reaches: written 20 and 30 hours ago."""
    store = open_store(tmp_path)
    build(store, "kept", [1, 2], "kept-1")
    for number, hours in ((3, 20), (4, 30)):
        there = objects(store)
        store_shards(store, [number])
        (path,) = objects(store) - there
        written = time.time() - hours * 3600
        os.utime(tmp_path / path, (written, written))
    return tmp_path


def test_what_nothing_reaches_goes_after_a_day_or_the_hours_that_are_asked_for(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(root)
    before = objects(store)
    found = gc_json(root, capsys)
    assert (len(found["removed"]), found["young"], found["dry_run"]) == (1, 1, False)
    assert found["kept"] == len(before) - 2
    after = objects(store)
    assert before - after == set(found["removed"])
    assert gc(root, "--grace", "20.5") == 0 and objects(store) == after
    assert gc(root, "--grace", "19.5") == 0
    assert "removed 1 objects, " in capsys.readouterr().out
    assert len(objects(store)) == len(before) - 2
    assert Dataset.open("kept", root=root).verify().ok


def test_a_dry_run_names_what_would_go_and_removes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = objects(open_store(root))
    looked = gc_json(root, capsys, "--dry-run", "--grace", "0")
    assert looked["dry_run"] and len(looked["removed"]) == 2
    assert gc(root, "--dry-run", "--grace", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == looked["removed"]
    assert lines[-1].startswith(
        f"would remove 2 objects, {looked['removed_bytes']:,} bytes; {looked['kept']} are in use"
    )
    assert objects(open_store(root)) == before
    assert gc_json(root, capsys, "--grace", "0")["removed"] == looked["removed"]


def test_datasets_that_nothing_names_go_only_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path)
    old, new = (f"shards/{build(store, 'adult', [number], f'adult-{number}')}/manifest.json" for number in (1, 2))
    assert gc_json(tmp_path, capsys, "--grace", "0")["removed"] == []
    assert gc_json(tmp_path, capsys, "--unnamed")["removed"] == []
    assert old in gc_json(tmp_path, capsys, "--unnamed", "--grace", "0")["removed"]
    assert (store.exists(old), store.exists(new)) == (False, True)
    assert Dataset.open("adult", root=tmp_path).verify().ok


def test_beside_a_build_it_removes_nothing_and_fails(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(root)
    before = objects(store)
    with Build.start(store, "adult", "adult-1"):
        assert gc(root, "--grace", "0") == 1
        assert gc(root, "--grace", "0", "--dry-run") == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("a build is under way: builds/adult-1.json") == 2
    assert objects(store) == before
    assert gc(root, "--grace", "0") == 0


def test_a_wrong_root_or_grace_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = objects(open_store(root))
    assert gc(tmp_path / "mistyped") == NotFoundError.exit_code
    assert "is it the right root?" in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists()
    assert gc(root, "--grace", "-1") == gc(root, "--grace", "soon") == 2
    assert objects(open_store(root)) == before

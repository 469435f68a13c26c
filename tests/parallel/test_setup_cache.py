"""The set-up cache: built once, by one process, and never half."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).resolve().parents[2]
# Builds an entry in two files; between them it says so and waits until somebody opens the pipe "go".
_BUILDER = """
import sys
from pathlib import Path
from cluster.setup import cache

def build(directory):
    with open(sys.argv[1] + "/builds", "a") as log:
        log.write("built\\n")
    (directory / "first").write_text("1")
    print("half", flush=True)
    Path(sys.argv[1], "go").read_text()
    (directory / "second").write_text("2")

print(sorted(path.name for path in cache.build_once("thing", build).iterdir()), flush=True)
"""


@pytest.fixture(autouse=True)
def _go(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")


def _builder(tmp_path: Path, name: str) -> processes.Process:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    return processes.Process([sys.executable, "-c", _BUILDER, tmp_path], tmp_path / name, environment)


def test_of_two_builders_at_once_one_builds_and_both_get_the_whole(tmp_path: Path) -> None:
    first, second = _builder(tmp_path, "a"), _builder(tmp_path, "b")
    try:
        processes.wait_until(lambda: "half" in first.stdout + second.stdout, 30, "half-built entry")
        assert not (tmp_path / "cache" / "mltrain" / "thing").exists()
        (tmp_path / "go").write_text("")
        said = first.wait(30).stdout + second.wait(30).stdout
    finally:
        first.end()
        second.end()
    assert said.count("['first', 'second']") == 2
    assert (tmp_path / "builds").read_text() == "built\n"


def test_after_a_builder_was_killed_halfway_the_next_one_builds(tmp_path: Path) -> None:
    first = _builder(tmp_path, "a")
    try:
        first.wait_for_output("half", 30)
        first.send(signal.SIGKILL)
        first.wait(30)
    finally:
        first.end()
    second = _builder(tmp_path, "b")
    try:
        second.wait_for_output("half", 30)
        (tmp_path / "go").write_text("")
        assert "['first', 'second']" in second.wait(30).stdout
    finally:
        second.end()

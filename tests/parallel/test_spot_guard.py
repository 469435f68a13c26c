"""SIGTERM to the process before a Ray node, with a real process in the node's place."""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mltrain.spot import Kind
from mltrain.spot.hooks import File
from tests.support.processes import Process, started, wait_until

_CHILD = """
import signal, sys
def end(number, frame):
    print("told to end", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    signal.pause()
"""


def guarded(tmp_path: Path, *options: str, child: Sequence[str] = ("-c", _CHILD)) -> AbstractContextManager[Process]:
    command = [sys.executable, "-m", "mltrain.spot.guard", "--notice", str(tmp_path / "notice"), *options]
    return started([*command, "--", sys.executable, *child], tmp_path / "logs")


def test_sigterm_is_a_notice_first_and_passed_on_when_it_comes_again(tmp_path: Path) -> None:
    source = File(str(tmp_path / "notice"))
    (tmp_path / "notice").write_text("of an earlier start")
    with guarded(tmp_path, "--grace-s", "60") as process:
        process.wait_for_output("up", 30)
        assert source.standing() == ()
        process.send(signal.SIGTERM)
        (notice,) = wait_until(source.standing, 30, "notice")
        assert notice.kind is Kind.LEAVING and notice.text == "SIGTERM"
        assert notice.deadline is not None and 50 < notice.deadline - time.time() < 61
        assert process.running() and "told" not in process.stdout
        process.send(signal.SIGTERM)
        ended = process.wait(30)
    assert ended.exit_code == 7 and "told to end" in ended.stdout


def test_sigterm_is_passed_on_shortly_before_the_grace_period_ends(tmp_path: Path) -> None:
    with guarded(tmp_path, "--grace-s", "5.2") as process:
        process.wait_for_output("up", 30)
        process.send(signal.SIGTERM)
        ended = process.wait(30)
    assert ended.exit_code == 7 and (tmp_path / "notice").exists()


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)]
)
def test_a_command_that_ends_by_itself_ends_it(tmp_path: Path, code: str, expected: int) -> None:
    with guarded(tmp_path, child=("-c", code)) as process:
        assert process.wait(30).exit_code == expected


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mltrain.spot.guard", "--", str(tmp_path / "missing")]
    with started(command, tmp_path / "logs") as process:
        ended = process.wait(30)
    assert ended.exit_code == 2 and "missing cannot be started" in ended.stderr

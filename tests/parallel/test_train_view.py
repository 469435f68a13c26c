"""The live view of `train run` on a terminal, here a pseudo-terminal; and what a pipe gets instead."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.datasets import make_dataset
from tests.support.processes import run
from tests.support.training import experiment, faulty

MLTRAIN = (str(Path(sys.executable).with_name("mltrain")), "train", "run")
_QUIET_S, _LONGEST_S = 60.0, 120.0
# A warning in the middle of the training, as anything may write one.
WARNING = """
import logging


class Warns:
    def on_event(self, kind, fields):
        if kind == "evaluation":
            logging.getLogger("mltrain.train").warning("a warning in between")
"""


class Terminal:
    """A command on a terminal of its own, 100 columns wide.

    Attributes:
        seen: what it wrote, with every control sequence.
    """

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.seen = ""
        self._deadline = time.monotonic() + _LONGEST_S
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.execve(words[0], words, {**os.environ, "TERM": "xterm", **environment})
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.modes = termios.tcgetattr(self._descriptor)

    def until(self, pattern: str) -> None:
        """Reads until it has written this."""
        while not re.search(pattern, self.seen) and self._read():
            pass
        assert re.search(pattern, self.seen), self.seen[-3000:]

    def press(self, key: bytes) -> None:
        """Types."""
        os.write(self._descriptor, key)

    def end(self) -> int:
        """Reads the rest; the exit code."""
        while self._read():
            pass
        assert termios.tcgetattr(self._descriptor) == self.modes
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """Ends it if it runs still."""
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended
        os.close(self._descriptor)

    def _read(self) -> bool:
        if not select.select([self._descriptor], [], [], _QUIET_S)[0]:
            raise TimeoutError(f"nothing was written for {_QUIET_S:g} s after {self.seen[-2000:]!r}")
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"it still writes after {_LONGEST_S:g} s: {self.seen[-2000:]!r}")
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # Linux's end of file, once nobody holds the other side
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    @property
    def left(self) -> list[str]:
        """The lines that stay: what is erased is gone."""
        lines = [""]
        for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.seen):
            if part == "\n":
                lines.append("")
            elif part.endswith("A"):
                # Up, where a view begins: all below it is drawn anew.
                lines.pop()
            elif part == "\x1b[2K":
                lines[-1] = ""
            elif not part.startswith(("\x1b", "\r")):
                lines[-1] += part
        return [line for line in lines if line]

    @property
    def cursor_shown(self) -> bool:
        """Whether the last word on the cursor was that it be shown."""
        return self.seen.rfind("\x1b[?25h") >= self.seen.rfind("\x1b[?25l")


@contextmanager
def terminal(words: list[str], home: Path) -> Iterator[Terminal]:
    """Starts a command; nothing of it is left afterwards."""
    started = Terminal(words, {"HOME": str(home), "XDG_STATE_HOME": str(home)})
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make_dataset(directory, rows=2000)
    return directory


@pytest.fixture
def words(root: Path, tmp_path: Path) -> list[str]:
    return command(root, tmp_path, epochs=1000)


def command(root: Path, directory: Path, **train: Any) -> list[str]:
    (directory / "warns.py").write_text(WARNING)
    mapping = {**experiment(root, **train), "callbacks": [f"{directory}/warns.py:Warns"]}
    (directory / "e.yaml").write_text(json.dumps(mapping))
    return [*MLTRAIN, "-c", str(directory / "e.yaml")]


def test_a_terminal_has_the_view_below_the_lines_until_ctrl_c_ends_the_run(words: list[str], tmp_path: Path) -> None:
    with terminal(words, tmp_path) as shown:
        shown.until(r"training · in this process")
        shown.until(r"step [\d,]+ of [\d,]+ · epoch \d+\.\d of 1000\.0 · ETA \d+:")
        shown.until(r"\S+ steps/s · \S+ samples/s · checkpoint after step [\d,]+, 0:\d\d ago")
        shown.until(r"validation/loss \S+, best \S+ after step [\d,]+")
        shown.press(b"\x03")
        assert shown.end() == 75
        assert shown.cursor_shown
        # The view is gone, and what was said is not torn by it.
        left = "\n".join(shown.left)
        assert "samples/s" not in left and "ago" not in left
        assert re.search(r"^\[ +\S+ s\] run \S+: model", left, re.MULTILINE)
        assert re.search(r"^\[ +\S+ s\] epoch .*, the best so far$", left, re.MULTILINE)
        assert re.search(r"^WARNING: a warning in between$", left, re.MULTILINE)
        assert re.search(r"^Run \S+ stopped after step \d+ \(SIGINT\), with a checkpoint\.$", left, re.MULTILINE)
        assert "\nto go on: " in left


def test_a_run_that_is_ended_at_once_leaves_the_terminal_as_it_was(words: list[str], tmp_path: Path) -> None:
    with terminal(words, tmp_path) as shown:
        shown.until(r"steps/s")
        os.kill(shown.pid, signal.SIGKILL)
        assert shown.end() == -signal.SIGKILL
        assert shown.cursor_shown


def test_an_error_is_below_what_was_said(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root, epochs=1000), tmp_path, at=[3, 0], what="raise")
    (tmp_path / "e.yaml").write_text(json.dumps(mapping))
    with terminal([*MLTRAIN, "-c", str(tmp_path / "e.yaml")], tmp_path) as shown:
        assert shown.end() == 1
        assert shown.cursor_shown
        assert "the user's own output" in shown.left
        assert any(line.startswith("error: ValueError: the user's own mistake") for line in shown.left)
        assert "in this process" in shown.seen and "in this process" not in "\n".join(shown.left)


def test_a_pipe_gets_lines_alone(root: Path, tmp_path: Path) -> None:
    ended = run(command(root, tmp_path, epochs=2), tmp_path / "logs", {"XDG_STATE_HOME": str(tmp_path)})
    assert ended.exit_code == 0, ended.stderr
    assert "\x1b" not in ended.stderr and "steps/s" not in ended.stderr
    assert all(re.match(r"\[ +\S+ s\] |WARNING: ", line) for line in ended.stderr.splitlines())

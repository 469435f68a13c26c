"""Processes of the tests: each leads a process group of its own, and nothing of it outlives its test."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

_POLL_S = 0.02


def wait_until(condition: Callable[[], T | None], timeout_s: float, what: str) -> T:
    """Polls until ``condition`` answers something true, and answers that.

    Raises:
        TimeoutError: naming ``what`` was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s there is still no {what}")
        time.sleep(_POLL_S)
    return value


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


class Process:
    """A command running in a process group of its own, its output in two files."""

    def __init__(
        self, command: Sequence[str | Path], logs: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = logs / "stdout", logs / "stderr"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=None if env is None else {**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def _last(self) -> str:
        return self.stderr[-4000:]

    def running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the command itself, not to its children."""
        self._popen.send_signal(number)

    def send_group(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group, as a terminal's Ctrl-C does."""
        os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> Completed:
        """Waits for the end.

        Raises:
            TimeoutError: it still runs; the message ends with what it wrote last.
        """
        try:
            exit_code = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{self._popen.args!r} still runs after {timeout_s:g} s:\n{self.stderr[-4000:]}"
            ) from None
        return Completed(exit_code, self.stdout, self.stderr)

    def wait_for_output(self, text: str, timeout_s: float) -> None:
        """Waits until the command has written ``text`` to stdout or stderr."""

        def written() -> bool:
            if text in self.stdout + self.stderr:
                return True
            if not self.running():
                raise RuntimeError(
                    f"ended with {self._popen.returncode} before it wrote {text!r}:\n{self.stderr[-4000:]}"
                )
            return False

        wait_until(written, timeout_s, f"{text!r} in the output of {self._popen.args!r}")

    def children(self) -> list[psutil.Process]:
        """Every living descendant, whatever its process group."""
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        """Kills the command and every descendant, and reaps the command."""
        descendants = self.children()
        try:
            self.send_group(signal.SIGKILL)
        except ProcessLookupError:
            pass  # the group has ended
        self._popen.wait()
        for child in descendants:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass  # it went with its parent
        psutil.wait_procs(descendants, timeout=10)


@contextmanager
def started(
    command: Sequence[str | Path], logs: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Process]:
    """Starts a command; when the block ends nothing of it is left. ``env`` is added to this process's environment."""
    process = Process(command, logs, env, cwd)
    try:
        yield process
    finally:
        process.end()


def run(
    command: Sequence[str | Path],
    logs: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 300.0,
) -> Completed:
    """Runs a command to its end."""
    with started(command, logs, env, cwd) as process:
        return process.wait(timeout_s)

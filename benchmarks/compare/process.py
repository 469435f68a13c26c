"""Sides as processes: started, asked for epochs, and their CPU time taken with that of all they start."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.setup.checkout import ROOT

_TICKS_S = os.sysconf("SC_CLK_TCK")
_END_S = 30.0


@dataclasses.dataclass(frozen=True)
class Epochs:
    """What some epochs of a side held and took.

    Attributes:
        epochs: how many.
        rows: rows in all.
        labels: sum of the labels.
        batches: batches in all.
        wall_s: seconds, by the side's own clock.
        cpu_s: CPU seconds of its process and all below it.
    """

    epochs: int
    rows: int
    labels: int
    batches: int
    wall_s: float
    cpu_s: float


class Side:
    """A tool that reads rows, in a process of its own and with all its workers below it."""

    def __init__(self, tool: str, python: Path, folder: Path, rows: int, batch: int) -> None:
        self.tool = tool
        self._process = start(tool, python, "read", folder, rows, batch)
        hello = self._answer()
        self.versions: dict[str, str] = hello["versions"]
        self.settings: dict[str, Any] = hello["settings"]

    def read(self, epochs: int = 1) -> Epochs:
        """Has it read some epochs.

        Raises:
            RuntimeError: it ended instead.
        """
        before = cpu_s(self._process.pid)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{epochs}\n")
        self._process.stdin.flush()
        said = self._answer()
        used = cpu_s(self._process.pid) - before
        return Epochs(epochs, said["rows"], said["labels"], said["batches"], said["seconds"], used)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        end(self._process)

    def _answer(self) -> dict[str, Any]:
        return answer(self._process, self.tool)


def start(tool: str, python: Path, action: str, folder: Path, rows: int, batch: int) -> subprocess.Popen[str]:
    """Starts a side as the leader of a session, so that whatever it starts can be ended with it."""
    words = [str(python), "-m", "benchmarks.compare.side", tool, action, str(folder), str(rows), str(batch)]
    # What tools say of deprecated calls, a page an epoch, is no concern of a comparison. What they leave in a temporary
    # directory goes with the rows; Ray's sockets need a short path.
    scratch = folder.parent / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    surroundings = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp"}
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=surroundings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answer(process: subprocess.Popen[str], tool: str) -> dict[str, Any]:
    """The next line of a side.

    Raises:
        RuntimeError: it ended instead; why is on stderr.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{tool} ended with exit code {process.wait()} before it answered")
    found: dict[str, Any] = json.loads(line)
    return found


def end(process: subprocess.Popen[str]) -> None:
    """Lets a side end by itself, its input being over, then kills what is left of it."""
    members = [process.pid, *descendants(process.pid)]
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + _END_S
    while any(_alive(pid) for pid in members[1:]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in members[1:]:
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)


def cpu_s(pid: int) -> float:
    """CPU seconds so far of a process, its descendants, and those of them that have ended and were waited for."""
    return sum(sum(_stat(member)[1]) for member in (pid, *descendants(pid))) / _TICKS_S


def descendants(pid: int) -> list[int]:
    """The living processes below one."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_stat(int(entry.name))[0], []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found[1:]


def _alive(pid: int) -> bool:
    return _stat(pid)[0] != 0


def _stat(pid: int) -> tuple[int, tuple[int, ...]]:
    """(parent, CPU ticks: user, system, and both of its ended children); zeros if it has ended."""
    try:
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, (0,)
    return int(fields[1]), tuple(int(field) for field in fields[11:15])

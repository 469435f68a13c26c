"""A real S3 server on loopback: versitygw over a directory, as set-up installed it."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.processes import Process, started, wait_until

VERSION = "v1.8.0"
_USER = {"AWS_ACCESS_KEY_ID": "mltrain-tests", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "us-east-1"}
# Of the caller's own account: a test must not reach it.
_FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP")


def binary() -> Path:
    """Where ``make setup`` installs the server.

    Raises:
        FileNotFoundError: it is not there.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "mltrain" / f"versitygw-{VERSION}" / "versitygw"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `make setup`")
    return path


class S3Server:
    """A running server. Buckets are directories below ``data``."""

    def __init__(self, process: Process, directory: Path, port: int) -> None:
        self._process = process
        self._log = directory / "access.log"
        self.data = directory / "data"
        self.endpoint = f"http://127.0.0.1:{port}"
        self.env = {**_USER, "AWS_ENDPOINT_URL": self.endpoint}
        self._buckets = 0

    def bucket(self) -> str:
        """Makes an empty bucket and answers its URI, ``s3://…``."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        (self.data / name).mkdir()
        return f"s3://{name}"

    def local(self, uri: str) -> Path:
        """The file or directory behind an object or a prefix, to damage or count what is stored."""
        return self.data / uri.removeprefix("s3://")

    def requests(self) -> Counter[str]:
        """How many requests the server has answered, by operation (``GetObject``)"""
        lines = self._log.read_text().splitlines()
        return Counter(word.removeprefix("s3_") for line in lines for word in line.split() if word.startswith("s3_"))

    def reads(self) -> Counter[str]:
        """How many times the server was asked for each object, by URI."""
        entries = [line.split() for line in self._log.read_text().splitlines()]
        return Counter(f"s3://{entry[1]}/{entry[8]}" for entry in entries if entry[7:8] == ["s3_GetObject"])

    def pause(self) -> None:
        """Stops answering, without closing a connection: a server that hangs."""
        self._process.send(signal.SIGSTOP)
        # The signal takes a moment to reach every thread, and one that still runs may answer a request.
        tasks = Path(f"/proc/{self._process.pid}/task")
        wait_until(lambda: all(_state(task) == "T" for task in tasks.iterdir()), 10, "stopped S3 server")

    def resume(self) -> None:
        self._process.send(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the server at once: connections are refused from now on."""
        self._process.end()


@contextmanager
def serve(directory: Path, *, read_only: bool = False) -> Iterator[S3Server]:
    """Runs a server over ``directory`` on a port that the kernel picks, for as long as the block lasts."""
    (directory / "data").mkdir(parents=True, exist_ok=True)
    # It goes with the tests even when they are killed.
    command: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", binary()]
    command += ["--port", "127.0.0.1:0", "--quiet", "--access-log", directory / "access.log"]
    if read_only:
        command.append("--readonly")
    keys = {"ROOT_ACCESS_KEY": _USER["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": _USER["AWS_SECRET_ACCESS_KEY"]}
    with started([*command, "posix", directory / "data"], directory / "server", env=keys) as process:
        yield S3Server(process, directory, wait_until(lambda: _port(process), 30, "listening S3 server"))


def _state(task: Path) -> str:
    return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]


def _port(process: Process) -> int | None:
    if not process.running():
        raise RuntimeError(f"the S3 server ended at once: {process.stderr}")
    for connection in psutil.Process(process.pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            return int(connection.laddr.port)
    return None


@contextmanager
def environment(server: S3Server) -> Iterator[None]:
    """Points this process, and what it starts, at the server through the AWS_* variables."""
    saved = {name: os.environ.get(name) for name in (*server.env, *_FOREIGN)}
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(server.env)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

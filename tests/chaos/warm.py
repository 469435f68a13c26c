"""Processes that start in milliseconds, with everything imported, to be killed.

They are forked by a server that has imported and done nothing else: a fork of a process with threads may hang.
"""

import contextlib
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

_MODULES = [
    "tests.chaos.readers",
    "tests.chaos.protocol",
    "tests.chaos.garbage",
    "tests.chaos.checkpoints",
    "mltrain.data.gather",
    "mltrain.storage.remote",
    "torch",
]
_context = multiprocessing.get_context("forkserver")


Warm = tuple[ForkServerProcess, Connection]


def start(target: Callable[..., None], *arguments: Any, environment: dict[str, str]) -> Warm:
    """Runs ``target(connection, *arguments)`` in a new process; answers it and the other end of the connection."""
    _context.set_forkserver_preload(_MODULES)
    mine, theirs = _context.Pipe()
    process = _context.Process(target=_run, args=(environment, target, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, mine


@contextlib.contextmanager
def started(target: Callable[..., None], *arguments: Any, environment: dict[str, str]) -> Iterator[Warm]:
    """As :func:`start`; when the block ends the process has ended."""
    process, connection = start(target, *arguments, environment=environment)
    try:
        yield process, connection
    finally:
        process.kill()
        process.join()
        connection.close()


def answer(process: ForkServerProcess, connection: Connection, timeout_s: float = 60.0) -> Any:
    """What a process says next.

    Raises:
        TimeoutError: nothing.
        EOFError: it has ended.
    """
    if not connection.poll(timeout_s):
        raise TimeoutError(f"process {process.pid} said nothing for {timeout_s:g} s")
    said = connection.recv()
    if isinstance(said, BaseException):
        raise said
    return said


def _run(environment: dict[str, str], target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None
    # Retries of storage are what is expected here.
    logging.getLogger("mltrain").setLevel(logging.ERROR)
    try:
        target(connection, *arguments)
    except BaseException as error:
        connection.send(error)
        raise SystemExit(1) from None

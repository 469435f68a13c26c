"""Conditional writes by real processes at once, and a writer that is killed."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mltrain.storage import open_store
from tests.support.s3 import S3Server

_PROCESSES = 8


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.bucket()


@contextmanager
def _racer(what: str, root: str, number: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.storage_racers", what, root, str(number)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _race(what: str, root: str, number: int) -> list[dict[str, Any]]:
    """Runs the processes from one start line; answers what each said."""
    with ExitStack() as stack:
        racers = [stack.enter_context(_racer(what, root, number)) for _ in range(_PROCESSES)]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        return [json.loads(racer.communicate(timeout=120)[0]) for racer in racers]


def test_of_8_processes_one_puts_an_absent_object(root: str) -> None:
    said = _race("absent", root, 20)
    store = open_store(root)
    for prize in range(20):
        winners = [answer["pid"] for answer in said if prize in answer["won"]]
        assert len(winners) == 1
        assert store.get(f"prize-{prize}") == f"{winners[0]} {prize}".encode()


def test_no_update_of_8_processes_is_lost(root: str) -> None:
    store = open_store(root)
    store.put_if_match("counter", b"0 ", None)
    said = _race("count", root, 10)
    assert store.get("counter").split()[0] == b"%d" % (10 * _PROCESSES)
    assert sum(int(str(answer["conflicts"])) for answer in said) > 0, "nobody met anybody: this was no race"


def test_a_killed_writer_leaves_a_whole_object_and_nothing_else_to_see(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    dice, store = random.Random(seed), open_store(tmp_path / "root")
    size = 3 << 20
    for _ in range(5):
        with _racer("overwrite", store.uri, size) as writer:
            assert writer.stdout is not None
            for _ in range(dice.randint(1, 10)):
                writer.stdout.readline()
            writer.kill()
            writer.wait()
        data = store.get("object")
        assert len(data) == size, seed
        assert len(set(data)) == 1, seed
        assert [meta.path for meta in store.list()] == ["object"]

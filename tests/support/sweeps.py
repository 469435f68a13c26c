"""Sweeps over small datasets, in this process or as the command that a user runs."""

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mltrain.results import read_events
from mltrain.storage import open_store
from tests.support.processes import Process, started
from tests.support.training import experiment


def sweep(root: Path, address: str, workers: Any, space: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A grid over ``space`` on the dataset ``made`` below ``root``; ``changes`` go into ``tune``."""
    mapping = experiment(root, workers=workers, address=address)
    return {**mapping, "tune": {"search": "grid", "space": dict(space), **changes}}


def command(mapping: Mapping[str, Any], run_id: str, directory: Path) -> AbstractContextManager[Process]:
    """``mltrain tune run`` as a process of its own."""
    file = directory / "sweep.yaml"
    file.write_text(json.dumps(mapping))
    program = Path(sys.executable).with_name("mltrain")
    words: list[str | Path] = [program, "tune", "run", "-c", file, "--run-id", run_id, "--output", "json"]
    return started(words, directory / "logs")


def events(root: Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    """What happened to a trial, of one kind."""
    return [event for event in read_events(open_store(root), run_id) if event["event"] == kind]

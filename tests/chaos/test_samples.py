"""A few cases of each kind of chaos; ``make chaos`` runs hundreds."""

import importlib
from pathlib import Path

import pytest

SAMPLES = {"damage": 60, "readers": 8, "garbage": 15, "protocol": 20}


@pytest.mark.parametrize("kind", SAMPLES)
def test_nothing_is_lost_and_nothing_believed(kind: str, tmp_path: Path) -> None:
    result = importlib.import_module(f"tests.chaos.{kind}").run(SAMPLES[kind], 7, tmp_path)
    assert not result.failures, result.text()

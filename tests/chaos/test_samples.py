"""A few cases of each kind of chaos; ``make chaos`` runs hundreds."""

import importlib
from pathlib import Path
from typing import Any

import pytest

SAMPLES: dict[str, dict[str, Any]] = {
    "damage": {"count": 60},
    "readers": {"count": 8, "next_start_s": 60.0},  # no matter how busy the machine is
    "garbage": {"count": 15},
    "protocol": {"count": 30},
    "cache": {"count": 3},
    "outage": {"count": 1, "outage_s": 2.0},
    "elastic": {"count": 1, "moments": 5},
    "checkpoints": {"count": 8},
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_nothing_is_lost_and_nothing_believed(kind: str, tmp_path: Path) -> None:
    result = importlib.import_module(f"tests.chaos.{kind}").run(seed=7, folder=tmp_path, **SAMPLES[kind])
    if "skipped" in result.figures:
        pytest.skip(result.figures["skipped"])
    assert not result.failures, result.text()

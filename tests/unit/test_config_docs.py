"""The documentation of the config is that of its models."""

from mltrain.config import DatasetFile, Experiment
from mltrain.config.problems import all_keys
from tests.support import config_reference


def test_the_page_has_every_key_with_its_default() -> None:
    assert config_reference.written() == config_reference.reference(), "run python -m tests.support.config_reference"


def test_every_key_is_on_the_page() -> None:
    page = config_reference.written()
    for model in (DatasetFile, Experiment):
        for key in all_keys(model):
            assert f"{key[-1]}` |" in page, key

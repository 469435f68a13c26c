"""``mltrain config``."""

from collections.abc import Sequence

import click

from mltrain.cli.options import common, config_options, example, needed
from mltrain.cli.output import Output


@click.group()
def config() -> None:
    """Dataset and experiment files."""


@config.command(epilog=example("mltrain config check -c sweep.yaml -s train.epochs=2"))
@config_options
@common
def check(out: Output, config: str | None, overrides: Sequence[str]) -> None:
    """Check a file and print the whole of it, with every default."""
    from mltrain import config as configs

    loaded = configs.load(needed(config), overrides)
    out.result(loaded.model_dump(mode="json", exclude_none=True), configs.to_yaml(loaded).rstrip())

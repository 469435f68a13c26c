"""``mltrain train``."""

from collections.abc import Sequence

import click

from mltrain.cli.options import common, config_options, needed, resumable
from mltrain.cli.output import Output, table


@click.group()
def train() -> None:
    """Trainings."""


@train.command()
@config_options
@click.option("--run-id", metavar="ID", help="Creates this run, or resumes it. By default NAME-UTC-RANDOM.")
@common
@resumable
def run(out: Output, config: str | None, overrides: Sequence[str], run_id: str | None) -> None:
    """Train a model. The first SIGINT or SIGTERM makes a checkpoint and exits 75, a second exits at once."""
    from mltrain import config as configs

    experiment = configs.load_experiment(needed(config), overrides)
    from mltrain import train as trainings

    result = trainings.run(experiment, run_id=run_id, progress=out.progress)
    out.result(
        result.to_json(),
        f"run {result.run_id} {result.status} after {result.step} steps ({result.wall_s:.1f} s)",
        table(["metric", "value"], sorted(result.metrics.items())),
        f"checkpoint {result.checkpoint}",
    )

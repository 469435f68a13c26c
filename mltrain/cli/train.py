"""``mltrain train``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mltrain.cli.options import common, config_options, example, needed, resumable
from mltrain.cli.output import Output
from mltrain.cli.tables import metrics_table

if TYPE_CHECKING:
    from mltrain.train import Result


@click.group()
def train() -> None:
    """Trainings."""


@train.command(epilog=example("mltrain train run -c sweep.yaml -s train.epochs=2 -s train.workers=0"))
@config_options
@click.option("--run-id", metavar="ID", help="Creates this run, or resumes it.", show_default="NAME-UTC-RANDOM")
@common
@resumable
def run(out: Output, config: str | None, overrides: Sequence[str], run_id: str | None) -> None:
    """Train a model. The first SIGINT or SIGTERM makes a checkpoint and exits 75, a second exits at once."""
    from mltrain import config as configs

    experiment = configs.load_experiment(needed(config), overrides)
    from mltrain import train as trainings

    goal = experiment.objective
    result = trainings.run(experiment, run_id=run_id, progress=out.training(goal.metric, goal.mode))
    out.result(
        result.to_json(),
        f"run {result.run_id} {result.status} after {result.step} steps ({result.wall_s:.1f} s): {result.reason}",
        *([metrics_table(result.metrics, _of(result), experiment.objective.metric)] if result.metrics else []),
        f"checkpoint {result.checkpoint}",
    )


def _of(result: "Result") -> str:
    """Which step the metrics are of: the best one's, which need not be the one that was evaluated last."""
    if result.best_step is None:
        return "Last evaluation"
    return f"Best: step {result.best_step} (epoch {result.epochs * result.best_step / max(1, result.step):.3g})"

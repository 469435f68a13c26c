"""``mltrain tune``."""

import dataclasses
from collections.abc import Sequence

import click

from mltrain.cli.options import common, config_options, example, needed, resumable
from mltrain.cli.output import Output, plain
from mltrain.cli.tables import sweep_parts


@click.group()
def tune() -> None:
    """Sweeps over hyperparameters."""


@tune.command(epilog=example("mltrain tune run -c sweep.yaml -s tune.trials=16 --run-id adult-nov"))
@config_options
@click.option("--run-id", metavar="ID", help="Creates this sweep, or resumes it.", show_default="NAME-UTC-RANDOM")
@common
@resumable
def run(out: Output, config: str | None, overrides: Sequence[str], run_id: str | None) -> int:
    """Run a sweep. The first SIGINT or SIGTERM stops it resumably and exits 75, a second exits at once."""
    from mltrain import config as configs

    experiment = configs.load_experiment(needed(config), overrides)
    experiment.require_tune()
    from mltrain import tune as sweeps

    result = sweeps.run(experiment, run_id=run_id, progress=out.progress)
    best = result.best
    out.result(
        {
            "run_id": result.run_id,
            "status": result.status,
            "best": plain(best.to_json()) if best is not None else None,
            "trials": [dataclasses.asdict(trial) for trial in result.trials],
        },
        f"sweep {result.run_id} {result.status} after {result.wall_s:.1f} s",
        *sweep_parts(result),
        *([] if best is not None else ["no trial has a result"]),
    )
    return 1 if result.status == "failed" else 0

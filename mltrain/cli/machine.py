"""``mltrain demo``, ``mltrain doctor`` and ``mltrain jobs``: trying it out, and putting it to work."""

from collections.abc import Sequence
from typing import Literal

import click

from mltrain.cli.options import common, config_options, example, resumable, root_of
from mltrain.cli.output import Output, table


@click.command(epilog=example("mltrain demo", "mltrain demo --root s3://bucket/prefix --trials 4"))
@click.option("--root", metavar="URI", default="./out", help="Where everything goes: a path or a URI.")
@click.option("--trials", default=8, type=click.IntRange(min=1), help="Trials of the sweep.")
@click.option("--workers", default=2, type=click.IntRange(min=0), help="Workers of each trial.")
@click.option("--run-id", metavar="ID", help="Goes on with a sweep that was stopped.")
@common
@resumable
def demo(out: Output, root: str, trials: int, workers: int, run_id: str | None) -> None:
    """Take the Adult sample from a Delta table to the best model of a sweep, on this machine."""
    from mltrain.cli.demo import demo as whole_path

    whole_path(root, trials, workers, run_id, out)


@click.command(epilog=example("mltrain doctor", "mltrain doctor --on ray -c sweep.yaml"))
@click.option("--on", type=click.Choice(["spark", "ray"]), help="Look at Spark's executors or Ray's workers.")
@config_options
@click.option("--root", metavar="URI", help="Where artefacts would go, if no file says it.", show_default="./out")
@common
def doctor(
    out: Output, on: Literal["spark", "ray"] | None, config: str | None, overrides: Sequence[str], root: str | None
) -> int:
    """Say what is installed and works, here or on the executors or workers: exit 1 if something is broken."""
    from mltrain.cli import doctor as looking

    rows = looking.doctor(on, root_of(config, overrides, root))
    shown = table(
        ["", "where", "what", "seen", "to do"],
        ((row.status, row.where, row.name, row.detail, row.remedy) for row in rows),
    )
    out.result(rows, shown)
    return looking.exit_code(rows)


@click.group()
def jobs() -> None:
    """Scripts and jars for spark-submit and ray job submit."""


@jobs.command(epilog=example("spark-submit $(mltrain jobs path build_dataset) -c adult.yaml"))
@click.argument("name", type=click.Choice(["build_dataset", "train", "sweep"]))
@common
def path(out: Output, name: str) -> None:
    """Print where a job script is."""
    from mltrain.cli import jobs as shipped

    found = str(shipped.path(name))
    out.result({"path": found}, found)


@jobs.command(epilog=example("spark-submit --packages $(mltrain jobs packages) ..."))
@common
def packages(out: Output) -> None:
    """Print what follows spark-submit --packages."""
    from mltrain.cli import jobs as shipped

    out.result(shipped.packages(), shipped.submit_words())

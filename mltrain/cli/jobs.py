"""Where the job scripts are, and the jars they need, for ``spark-submit`` and ``ray job submit``."""

from pathlib import Path

from mltrain.cli import shipped

NAMES = ("build_dataset", "train", "sweep")


def path(name: str) -> Path:
    """The script of the job ``name``, one of `NAMES`.

    Raises:
        MissingDependencyError: the installation lacks it.
    """
    return shipped.path(f"jobs/{name}.py")


def packages() -> str:
    """What follows ``spark-submit --packages``, unquoted: the coordinates and the exclusion that belongs to them.

    Without the exclusion every executor would get the whole AWS SDK, 640 MB, where s3a uses 40 MB of it.
    """
    from mltrain.features import packages as jars

    return f"{jars.packages()} --exclude-packages {jars.excludes()}"

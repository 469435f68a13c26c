"""Where the job scripts are, and the jars they need, for ``spark-submit`` and ``ray job submit``."""

from importlib import metadata
from pathlib import Path

from mltrain.errors import MissingDependencyError

NAMES = ("build_dataset", "train", "sweep")


def path(name: str) -> Path:
    """The script of a job: in a checkout ``jobs/<name>.py``, of an installed wheel ``share/mltrain/jobs/<name>.py``.

    Raises:
        MissingDependencyError: the installation lacks it.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").exists():
        return checkout / "jobs" / f"{name}.py"
    for file in metadata.files("mltrain") or ():
        if file.match(f"share/mltrain/jobs/{name}.py"):
            return Path(str(file.locate())).resolve()
    raise MissingDependencyError(
        f"the job {name!r} is not among the files of the installed mltrain: install its wheel again with "
        "`pip install --force-reinstall mltrain`"
    )


def packages() -> str:
    """What follows ``spark-submit --packages``, unquoted: the coordinates and the exclusion that belongs to them.

    Without the exclusion every executor would get the whole AWS SDK, 640 MB, where s3a uses 40 MB of it.
    """
    from mltrain.features import packages as jars

    return f"{jars.packages()} --exclude-packages {jars.excludes()}"

"""Where the job scripts are, and the jars they need, for ``spark-submit`` and ``ray job submit``."""

from pathlib import Path

from mltrain.cli import shipped


def path(name: str) -> Path:
    """The script of a job: "build_dataset", "train" or "sweep".

    Raises:
        MissingDependencyError: the installation lacks it.
    """
    return shipped.path(f"jobs/{name}.py")


def packages() -> dict[str, list[str]]:
    """The coordinates of the jars that Spark needs ("packages"), and of those to leave out ("exclude_packages").

    Without the exclusion every executor would get the whole AWS SDK, 640 MB, where s3a uses 40 MB of it.
    """
    from mltrain.features import packages as jars

    return {"packages": jars.packages().split(","), "exclude_packages": jars.excludes().split(",")}


def submit_words() -> str:
    """What follows ``spark-submit --packages``, unquoted: the coordinates, and the flag that leaves the rest out."""
    found = packages()
    return f"{','.join(found['packages'])} --exclude-packages {','.join(found['exclude_packages'])}"

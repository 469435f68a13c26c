"""Files that come with the library and are not modules: the job scripts and the sample data."""

from importlib import metadata
from pathlib import Path

from mltrain.errors import MissingDependencyError


def path(name: str) -> Path:
    """Where a shipped file is: ``name`` below the checkout, or below ``share/mltrain`` of an installed wheel.

    Args:
        name: such as "jobs/train.py" or "examples/data/adult.csv".

    Raises:
        MissingDependencyError: the installation lacks it.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "setup.cfg").exists() and (checkout / name).exists():
        return checkout / name
    for file in metadata.files("mltrain") or ():
        if file.match(f"share/mltrain/{name}"):
            return Path(str(file.locate())).resolve()
    raise MissingDependencyError(
        f"{name} is not among the files of the installed mltrain: install its wheel again with "
        "`pip install --force-reinstall --no-deps mltrain`"
    )

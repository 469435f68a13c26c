"""What a benchmark prints beside its figures: versions, cores, and how busy the machine was when it began."""

import os
import platform
from importlib.metadata import version


def surroundings(*packages: str) -> str:
    """One line: versions of mltrain, of the packages that are measured and of Python; load and cores."""
    versions = " ".join(f"{name} {version(name)}" for name in ("mltrain", *packages))
    return f"{versions}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    print(surroundings("numpy", "pyarrow", "obstore", "torch", "pyspark", "delta-spark", "ray", "horovod"))

"""The jars of Delta and s3a, resolved once into Spark's own cache (Ivy), so that no later start needs the network.

Run with the Python of ``.venv``.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.setup import cache
from mltrain.features.packages import excludes, packages

# spark-submit resolves the packages before it runs the program; the program tells where they are.
_PROGRAM = """
import sys
from pyspark import SparkConf, SparkContext
SparkContext._ensure_initialized()
open(sys.argv[1], "w").write(SparkConf().get("spark.jars", "").replace("file://", "").replace(",", "\\n"))
"""


def resolve() -> None:
    """Has Spark fetch what is missing. The paths of the jars are kept beside the cache, to see that they are there."""
    name = hashlib.sha256(f"{packages()} {excludes()}".encode()).hexdigest()[:16]
    listed = cache.directory() / f"jars-{name}"
    if listed.exists() and all(Path(path).exists() for path in listed.read_text().splitlines()):
        return
    print("setup: resolving the jars of Delta and s3a", file=sys.stderr)
    listed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=listed.parent) as work:
        program, answer = Path(work, "program.py"), Path(work, "jars")
        program.write_text(_PROGRAM)
        submit = Path(sys.executable).with_name("spark-submit")
        flags = ["--master", "local[1]", "--packages", packages(), "--exclude-packages", excludes()]
        environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
        done = subprocess.run(
            [submit, *flags, program, answer],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"{done.stdout[-3000:]}\nsetup: Spark could not resolve its jars; the reason stands above. Where it "
                "says 'NOT FOUND ... local-m2-cache', a half-used Maven cache is in the way: `mltrain doctor` names it."
            )
        answer.rename(listed)


if __name__ == "__main__":
    resolve()

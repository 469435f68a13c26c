"""Builds datasets in a process of its own: ``python -m tests.support.build_dataset FILE...`` prints a digest a file.

A build that fails prints its error's class and message instead. Spark's settings come from SPARK_CONF_DIR and
PYSPARK_SUBMIT_ARGS, as for a user.
"""

import json
import sys
from pathlib import Path

from mltrain import features
from mltrain.config import DatasetFile
from mltrain.errors import MltrainError


def main(files: list[str]) -> None:
    """One session, one build after the other."""
    spark = features.session("tests")
    for file in files:
        try:
            report = features.build(DatasetFile.model_validate_json(Path(file).read_text()), spark=spark)
            answer = {"digest": report.digest, "master": spark.sparkContext.master}
        except MltrainError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1:])

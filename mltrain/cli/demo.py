"""``mltrain demo``: the whole path on a small real table, on this machine, below a root of the user's choice."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain import config as configs
from mltrain.cli import shipped
from mltrain.cli.output import Output, table
from mltrain.cli.tables import metrics_table, sweep_parts
from mltrain.errors import MissingDependencyError
from mltrain.storage import Store, delta_options, open_store, spark_uri

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from mltrain.features import BuildReport
    from mltrain.tune import SweepResult

SAMPLE = "examples/data/adult.csv"
DATASET = "examples/adult.yaml"
_TABLE = "lake/adult"
_METRIC = "validation/auc"
# The first rung of ASHA: an epoch.
_GRACE_STEPS = 100
_EPOCHS = 4


def demo(root: str, trials: int = 8, workers: int = 2, run_id: str | None = None, out: Output | None = None) -> None:
    """Takes the Adult sample from a Delta table to the best model of a sweep, and prints what came of it.

    A second time below the same root the table and the dataset are there already; the sweep is a new one.

    Args:
        root: a path or a URI; every artefact lands below it, the table too.
        trials: of the sweep.
        workers: that each trial trains on; 0 trains in the trial's own process.
        run_id: of the sweep; names one that was stopped to go on with it.
        out: where progress and results go.

    Raises:
        MltrainError: as the parts raise it.
    """
    out = out or Output("text")
    _require_engines()
    seconds: dict[str, float] = {}
    store = open_store(root)
    with out:
        store.check_writable()
        with _timed(seconds, "table and dataset"):
            built = _dataset(store, out)
        with _timed(seconds, "sweep"):
            swept = _sweep(store.uri, built, trials, workers, run_id, out)
        with _timed(seconds, "test and plots"):
            test, pictures = _conclude(store, swept, out)
    _print(store, built, swept, test, pictures, seconds, out)


def dataset_file(root: str) -> configs.DatasetFile:
    """The demo's dataset: ``examples/adult.yaml``, with its table and root below the demo's."""
    return configs.load_dataset(shipped.path(DATASET), {"root": root, "dataset.table": f"{root}/{_TABLE}"})


def experiment(root: str, digest: str, trials: int, workers: int) -> configs.Experiment:
    """The demo's sweep: what a user would write into ``sweep.yaml``."""
    cores = len(os.sched_getaffinity(0))
    parsed = configs.parse(
        {
            "name": "adult-demo",
            "root": root,
            "dataset": f"adult@{digest}",
            "model": {"factory": "mltrain.models:tabular_mlp", "args": {"hidden": [128, 64]}},
            "objective": {"metric": _METRIC},
            "train": {
                "epochs": _EPOCHS,
                "global_batch_size": 256,
                "lr_schedule": {"name": "cosine", "warmup_steps": 50},
                "workers": {"min": workers, "max": workers, "cpus": min(1.0, cores / max(workers, 1))},
                "seed": 13,
            },
            "tune": {
                "trials": trials,
                "scheduler": {"name": "asha", "grace_steps": _GRACE_STEPS, "reduction_factor": 3},
                "space": {
                    "train.optimizer.lr": {"loguniform": [1e-4, 3e-2]},
                    "train.optimizer.weight_decay": {"loguniform": [1e-4, 1e-1]},
                    "model.args.dropout": {"uniform": [0.0, 0.5]},
                },
            },
            "cluster": {"address": "local"},
        }
    )
    assert isinstance(parsed, configs.Experiment)
    return parsed


def _require_engines() -> None:
    """Before minutes of work, that everything later is there.

    Raises:
        MissingDependencyError: an engine is not installed.
    """
    import importlib.util

    extras = {"pyspark": "spark", "delta": "spark", "torch": "torch", "ray": "ray", "matplotlib": "notebook"}
    for module, extra in extras.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"the demo needs {module}, which is not installed: pip install 'mltrain[{extra}]', or run `make demo`"
            )


def _dataset(store: Store, out: Output) -> "BuildReport":
    from mltrain import features

    file = dataset_file(store.uri)
    out.progress("1/4 starting Spark")
    spark = features.session("mltrain demo")
    try:
        _write_table(spark, f"{store.uri}/{_TABLE}", out)
        out.progress("2/4 building the dataset")
        return features.build(file, spark=spark, progress=out.step("2/4"))
    finally:
        _end(spark)


def _write_table(spark: "SparkSession", uri: str, out: Output) -> None:
    """The sample as a Delta table of two commits; one that an earlier demo left is used as it is."""
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyarrow import csv

    options = csv.ConvertOptions(null_values=["?", ""], strings_can_be_null=True)
    rows = csv.read_csv(shipped.path(SAMPLE), convert_options=options)
    rows = rows.add_column(0, "row_id", pa.array(range(rows.num_rows), pa.int64()))
    commits = [rows.slice(0, rows.num_rows // 2), rows.slice(rows.num_rows // 2)]
    found = DeltaTable.is_deltatable(uri, storage_options=delta_options(uri))
    done = DeltaTable(uri, storage_options=delta_options(uri)).version() + 1 if found else 0
    for number, commit in enumerate(commits[done:], done):
        out.progress(f"1/4 Delta table {uri}: commit {number + 1} of {len(commits)}")
        spark.createDataFrame(commit).coalesce(1).write.format("delta").mode("append").save(spark_uri(uri))


def _end(spark: "SparkSession") -> None:
    """Ends the engine, its JVM too: the sweep wants the memory and the cores."""
    from pyspark import SparkContext

    gateway: Any = SparkContext._gateway
    spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait()
    SparkContext._gateway = SparkContext._jvm = None


def _sweep(
    root: str, built: "BuildReport", trials: int, workers: int, run_id: str | None, out: Output
) -> "SweepResult":
    from mltrain import tune

    config = experiment(root, built.digest, trials, workers)
    return tune.run(config, run_id=run_id, progress=out.step("3/4"))


def _conclude(store: Store, swept: "SweepResult", out: Output) -> tuple[dict[str, float], list[str]]:
    from mltrain import results

    assert swept.best is not None
    out.progress(f"4/4 evaluating {swept.best.run_id} on the test split, once")
    test = swept.best.evaluate("test")
    for run_id in (swept.best.run_id, swept.run_id):
        results.add_metrics(store.uri, run_id, test)
    out.progress("4/4 drawing")
    pictures = []
    with tempfile.TemporaryDirectory(prefix="mltrain-demo-") as directory:
        for file in results.plot(store.uri, [swept.run_id], Path(directory)):
            store.upload(f"plots/{file.name}", file)
            pictures.append(store.join(f"plots/{file.name}"))
    return test, pictures


def _print(
    store: Store,
    built: "BuildReport",
    swept: "SweepResult",
    test: dict[str, float],
    pictures: list[str],
    seconds: dict[str, float],
    out: Output,
) -> None:
    best = swept.best
    assert best is not None
    title = f"Best model: {best.run_id}, step {best.best_step} (the test split was looked at once)"
    metrics = metrics_table({**best.metrics, **test}, title, _METRIC)
    took = table(["", "s"], [*seconds.items(), ("all", sum(seconds.values()))], title="Time")
    places = {
        "Delta table": f"{store.join(_TABLE)} (version {dataset_file(store.uri).dataset.version})",
        "dataset": f"{built.uri} ({built.digest[:12]}, {sum(built.rows.values())} rows, {built.shards} shards)",
        "sweep": store.join(f"sweeps/{swept.run_id}"),
        "best run": store.join(f"runs/{best.run_id}"),
        "checkpoint": best.checkpoint,
        "runs table": store.join("runs_table"),
        **{f"picture {number}": picture for number, picture in enumerate(pictures, 1)},
    }
    data = {
        "run_id": swept.run_id, "best": best.run_id, "metrics": {**best.metrics, **test}, "seconds": seconds,
        "dataset": built.digest, "reused": built.reused, "trials": swept.table.to_pylist(), "places": places,
    }  # fmt: skip
    out.result(
        data,
        *sweep_parts(swept),
        metrics,
        took,
        table(["", "where"], places.items(), "Where things are"),
        f"\nmltrain runs show {best.run_id} --root {store.uri}",
        *activation(),
    )


def activation() -> list[str]:
    """What to type before the ``mltrain`` of a virtual environment, like this one, is found; nothing if it is."""
    found = shutil.which("mltrain")
    own = Path(sys.prefix, "bin")
    if sys.prefix == sys.base_prefix or (found is not None and Path(found).parent.resolve() == own.resolve()):
        return []
    here = own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own
    return [f"The commands here are in a virtual environment: source {here}/activate"]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began

"""Requests that are wrong: each is refused with exit code 2 and a message that names what is wrong, before any work.

Most go through the command line in this process, ten through the installed command.
"""

import shlex
import sys
from pathlib import Path

import pytest

from mltrain.cli.app import run
from tests.support import processes

DATASET = """\
name: adult
dataset:
  table: ./adult.delta
  key: [row_id]
  label: {column: income, type: binary, positive: ">50K"}
"""
EXPERIMENT = """\
name: adult-mlp
dataset: adult
model: {args: {hidden: [256, 128]}}
objective: {metric: validation/auc, mode: max}
train: {epochs: 5, optimizer: {lr: 1e-3}}
"""
SWEEP = EXPERIMENT + "tune: {trials: 4, space: {train.optimizer.lr: {loguniform: [1e-4, 1e-1]}}}\n"

# What is overridden in a good file; what the message says.
_DATASET_VALUES = [
    ("rot=x", "unknown key rot (value 'x'); did you mean root?"),
    ("dataset.labl=x", "did you mean dataset.label?"),
    ("dataset.lable=x", "did you mean dataset.label?"),
    ("dataset.seed=3", "unknown key dataset.seed (value 3); did you mean dataset.split.seed?"),
    ("dataset.base=adult@1", "dataset.base is 'adult@1'; want a dataset's name, name@digest or digest"),
    ("dataset={table: ./t, label: {column: y, type: binary}, base: a}", "base needs key"),
    (
        "dataset={table: ./t, label: {column: y, type: binary}, base: a, key: [k], split: {time: day}}",
        "base does not go with split time",
    ),
    ("name=a/b", "name is 'a/b'; want letters, digits"),
    ("name=null", "name is missing"),
    ("dataset=null", "dataset is missing"),
    ("dataset.table=null", "dataset.table is missing"),
    ("dataset.label=null", "label is missing"),
    ("dataset.label.column=null", "dataset.label.column is missing"),
    ("dataset.labels={a: {type: binary}}", "label and labels are both given"),
    ("dataset.label.type=ranking", "'ranking'; want binary, multiclass, multilabel or regression"),
    ("dataset.label={column: y, type: regression, positive: 1}", "positive goes with type binary, not with regression"),
    ("dataset.label={column: y, type: binary, classes: [a, b]}", "classes go with type multiclass or multilabel"),
    ("dataset.label={column: y, type: multiclass, classes: [a]}", "want at least 2"),
    ("dataset.label={column: y, type: multiclass, classes: [a, b, a]}", "one class twice"),
    ("dataset.key=row_id", "dataset.key is 'row_id'; want a list: write [row_id]"),
    ("dataset.key=[row_id, row_id]", "'row_id' is both key and key"),
    ("dataset.key=[income]", "'income' is both key and label"),
    ("dataset.weight=income", "'income' is both label and weight"),
    ("dataset.keep=[row_id]", "'row_id' is both key and keep"),
    ("dataset.features={income: {}}", "column 'income' is the label: never"),
    ("dataset.version=-1", "dataset.version is -1; want at least 0"),
    (
        "dataset={table: t, version: 1, timestamp: 2024-01-01, label: {column: y, type: binary}}",
        "version and timestamp",
    ),
    ("dataset.split=random", "dataset.split is 'random'; want a mapping"),
    ("dataset.split={method: hash}", "'hash'; want random, stratified, group, time or column"),
    ("dataset.split.fractions={train: 0.8, test: 0.1}", "fractions add up to 0.9; want 1"),
    ("dataset.split.fractions={train: 1.2, test: -0.2}", "dataset.split.fractions.test is -0.2; want more than 0"),
    ("dataset.split.fractions={fit: 0.5, test: 0.5}", "want train among them"),
    ("dataset.split={column: part, fractions: {train: 1.0}}", "fractions do not go with method column"),
    ("dataset.split={group: user, time: day}", "group and time name a method each"),
    ("dataset.split={method: group}", "method group needs column"),
    ("dataset.split={method: random, column: x}", "method random takes no column"),
    ("dataset.split={column: income}", "split by column of column 'income', which is the label"),
    (
        "dataset={table: t, label: {column: y, type: regression}, split: {method: stratified}}",
        "stratified needs column",
    ),
    ("dataset.features={age: {type: category}}", "want numeric, categorical, hashed, id_list or vector"),
    ("dataset.features={age: {type: categorical, scale: none}}", "scale do not go with type categorical"),
    ("dataset.features={age: {impute: zero, buckets: 9}}", "go with no one feature type"),
    ("dataset.features={age: {impute: zero, missing: refuse}}", "missing: refuse leaves nothing to impute"),
    ("dataset.features={age: {missing: drop}}", "want impute, indicator or refuse"),
    ("dataset.features={age: {impute: .inf}}", "dataset.features.age.impute"),
    ("dataset.features={age: {decimal_scale: 39}}", "dataset.features.age.decimal_scale is 39"),
    ("dataset.features={age: {buckets: 2147483649}}", "dataset.features.age.buckets is 2147483649"),
    (
        "dataset.features={age: {impute: mode}}",
        "dataset.features.age.impute is 'mode'; want median, mean or zero or a number",
    ),
    ("dataset.features={age: {drop: true, scale: none}}", "drop: true goes with no other option"),
    ("dataset.features={age: {buckets: 1}}", "dataset.features.age.buckets is 1; want at least 2"),
    ("dataset.features={age: {bucket: 9}}", "did you mean dataset.features.age.buckets?"),
    ("dataset.rows_per_shard=0", "dataset.rows_per_shard is 0; want at least 1"),
    ("root=ftp://host/a", "scheme 'ftp' is not supported"),
    ("root=s3://key:hidden@bucket/a", "holds credentials"),
    ("storage.deadline_s=0", "storage.deadline_s is 0; want more than 0"),
    ("cache.budget_bytes=1GB", "cache.budget_bytes is '1GB'; want a whole number"),
    ("tags={team: 7}", "tags.team is 7; want text"),
    ("root", "override 'root': want key=value"),
    ("=3", "want key=value"),
    ("dataset.table.path=x", "which has no keys; set it as a whole"),
    ("dataset.key=[a", "not YAML"),
    ('dataset."key=[a]', "want names joined by dots"),
]
_EXPERIMENT_VALUES = [
    ("train.lr=1e-3", "unknown key train.lr (value 0.001); did you mean train.optimizer.lr?"),
    ("train.epochs=many", "train.epochs is 'many'; want a whole number"),
    ("train.epochs=true", "train.epochs is True; want a whole number"),
    ("train.epochs=1.5", "train.epochs is 1.5; want a whole number"),
    ("train.epochs=0", "train.epochs is 0; want at least 1"),
    ("train.global_batch_size=0", "want at least 1"),
    ("train.max_local_batch_size=0", "train.max_local_batch_size is 0; want at least 1"),
    ("train.optimizer=adam", "train.optimizer is 'adam'; want a mapping"),
    ("train.optimizer.name=lion", "'lion'; want adamw, adam or sgd"),
    ("train.optimizer.lr=fast", "train.optimizer.lr is 'fast'; want a number"),
    ("train.optimizer.lr=0", "train.optimizer.lr is 0; want more than 0"),
    ("train.optimizer.lr=.nan", "train.optimizer.lr is nan; want"),
    ("train.optimizer.momentum=0.9", "momentum does not go with optimizer adamw"),
    ("train.optimizer={name: sgd, betas: [0.8, 0.9]}", "betas does not go with optimizer sgd"),
    ("train.optimizer.betas=[0.9]", "train.optimizer.betas"),
    ("train.lr_schedule.name=step", "want constant, cosine or linear"),
    ("train.lr_schedule={name: cosine, warmup_steps: -1}", "want at least 0"),
    ("train.precision=fp16", "train.precision is 'fp16'; want fp32 or bf16"),
    ("train.gradient_clip_norm=-1", "want more than 0"),
    ("train.evaluate.every={epochs: 1, steps: 5}", "want epochs or steps, one of them"),
    ("train.evaluate.every={}", "want epochs or steps, one of them"),
    ("train.early_stopping.patience=0", "want at least 1"),
    ("train.workers={min: 4, max: 2}", "min 4 is more than max 2"),
    ("train.workers={min: 0, max: 2}", "0 means in this process"),
    ("train.workers=-1", "train.workers is -1; want at least 0"),
    ("train.workers=two", "train.workers is 'two'; want a whole number, or a mapping with min and max"),
    ("train.checkpoint.every=often", "'often'; want auto or a mapping"),
    ("train.checkpoint.every={steps: 5, seconds: 5}", "want steps or seconds, one of them"),
    ("train.checkpoint.keep=0", "train.checkpoint.keep is 0; want at least 1"),
    ("train.seed=-1", "train.seed is -1; want at least 0"),
    ("train.workers.max=1000000000", "want at most 10000"),
    ("train.checkpoint.every={seconds: 0}", "train.checkpoint.every.seconds is 0; want more than 0.0"),
    ("train.heartbeat.interval_s=0", "want at least 0.01"),
    ("train.heartbeat.interval_s=1e300", "want at most 60"),
    ("train.collectives=mpi", "'mpi'; want horovod"),
    ("objective.metric=auc", "want <split>/<name>, as in validation/auc"),
    ("objective={metric: test/auc, mode: max}", "the test split must not choose anything"),
    ("objective={metric: validation/auc, mode: min}", "mode min would look for the worst auc; want max"),
    ("objective={metric: validation/profit}", "say mode: min or mode: max"),
    ("model.factory=build", "want package.module:name or ./file.py:name"),
    ("model.factory=./none.py:build", "there is no file"),
    ("model.factory=./models/mine:build", "a path names a .py file"),
    ("cluster.address=here", "want auto, local or host:port"),
    ("loggers=[wandb]", "loggers[0] is 'wandb'; want tensorboard"),
    (
        "loggers=[tensorboard, mlflow]",
        "loggers[1] mlflow is not supported by this version of mltrain; want tensorboard",
    ),
    ("cluster.market=preemptible", "cluster.market is 'preemptible'; want any, spot, on-demand or"),
    ("callbacks=[Hook]", "callbacks[0] is 'Hook'; want package.module:name"),
    (
        "dataset={table: t, label: {column: y, type: binary}, split: {fractions: {train: 1.0}}}",
        "has no split 'validation'",
    ),
]
_SWEEP_VALUES = [
    ("tune.space={}", "tune.space"),
    ("tune.trials=0", "tune.trials is 0; want at least 1"),
    ("tune.search=exhaustive", "want random or grid"),
    ("tune.search=optuna", "tune.search optuna is not supported by this version of mltrain; want random or grid"),
    ("tune.scheduler.name=median", "want fifo or asha"),
    ("tune.scheduler.name=pbt", "tune.scheduler.name pbt is not supported by this version of mltrain; want fifo or"),
    ("tune.budget={wall_s: 60}", "tune.budget is not supported by this version of mltrain"),
    ("tune.folds=5", "tune.folds is not supported by this version of mltrain"),
    ("tune.scheduler.grace_steps=5", "grace_steps go with scheduler asha, not with fifo"),
    ("tune.scheduler={name: asha, reduction_factor: 1}", "want at least 2"),
    ("tune.space.train.optimizer.lr={normal: [0, 1]}", "'normal' is not a way to draw; want uniform"),
    ("tune.space.train.optimizer.lr={uniform: [0.1, 1], choice: [1]}", "want one of uniform"),
    ("tune.space.train.optimizer.lr={uniform: [1, 0.1]}", "low is not below high"),
    ("tune.space.train.optimizer.lr={loguniform: [0, 1]}", "a log scale begins above 0"),
    ("tune.space.train.optimizer.lr={uniform: 3}", "uniform wants a list"),
    ("tune.space.train.optimizer.lr={choice: []}", "the list is empty"),
    ("tune.space.train.optimizer.lr={uniform: [-1, 1]}", "can draw -1.0"),
    ("tune.space.train.epochs={uniform: [1, 3]}", "want a whole number"),
    ("tune.space.train.optimiser.lr={uniform: [0.1, 1]}", "did you mean train.optimizer?"),
    ("tune.space.train.workers={choice: [1, 2]}", "is the same for every trial"),
    ("tune.space.root={choice: [a, b]}", "want a key of train or model"),
    ("tune.search=grid", "search grid needs {choice"),
    ("tune={search: grid, trials: 5, space: {train.seed: {choice: [1, 2]}}}", "search grid has 2 points, not 5 trials"),
]
_NEVER_STOPS = [
    ("tune.scheduler={name: asha, grace_steps: 10}", "train.max_steps=10", "asha would never stop a trial"),
    ("train.evaluate.every={steps: 10}", "tune.scheduler={name: asha}", "leaves none before train.max_steps 10"),
]

# Whole files.
_FILES = [
    ("", "the file is empty"),
    ("- a\n- b\n", "the file is a list"),
    ("name: a\nroot: [\n", "not YAML"),
    ("name: a\nname: b\ndataset: c\n", ":2: key 'name' is written twice"),
    ("name: !!python/object:os.system a\ndataset: b\n", "is not supported; write the plain value"),
    ("name: a\ndataset: b\n1: c\n", "key 1 is not text"),
    ("name: a\ndataset: b\nroot: ${NO_SUCH_VARIABLE}\n", ":3: environment variable NO_SUCH_VARIABLE is not set"),
    ("name: a\ndataset: b\nroot: s3://${AWS_SECRET_ACCESS_KEY}\n", ":3: ${AWS_SECRET_ACCESS_KEY} looks like a secret"),
    ("name: a\ndataset: b\nroot: ${a-b}\n", "is not a variable's name"),
    (
        "name: a\ndataset:\n  table: t\n  label: {column: y, type: binary}\n  keep: [p]\n  features:\n    p: {}\n",
        "file.yaml:7: dataset.features.p: column 'p' is in keep: never a feature",
    ),
    ("extends: none.yaml\nname: a\ndataset: b\n", ":1: extends 'none.yaml': config file"),
    ("extends: file.yaml\nname: a\ndataset: b\n", "extends goes in a circle"),
    ("extends: [a.yaml]\nname: a\ndataset: b\n", "want the path of one file"),
]


def _refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = run(arguments)
    said = capsys.readouterr()
    assert exit_code == 2, said.err
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert "hidden" not in said.err
    assert message in said.err


def _check(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return ["config", "check", "-c", str(path), *(word for override in overrides for word in ("-s", override))]


@pytest.mark.parametrize(("override", "message"), _DATASET_VALUES)
def test_a_wrong_dataset_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    _refused(_check(tmp_path, DATASET, override), message, capsys)


@pytest.mark.parametrize(("override", "message"), _EXPERIMENT_VALUES)
def test_a_wrong_experiment_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    _refused(_check(tmp_path, EXPERIMENT, override), message, capsys)


@pytest.mark.parametrize(("override", "message"), _SWEEP_VALUES)
def test_a_wrong_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    _refused(_check(tmp_path, SWEEP, override), message, capsys)


@pytest.mark.parametrize(("first", "second", "message"), _NEVER_STOPS)
def test_a_sweep_whose_scheduler_has_nothing_to_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, second: str, message: str
) -> None:
    words = _check(tmp_path, SWEEP, first, second, "train.max_steps=10")
    assert run(words) == 0, "a training may use the file"
    capsys.readouterr()
    _refused(["tune", "run", *words[2:]], message, capsys)


@pytest.mark.parametrize(("text", "message"), _FILES)
def test_a_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    _refused(_check(tmp_path, text), message, capsys)


def test_a_wrong_value_is_named_with_its_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _check(tmp_path, EXPERIMENT.replace("epochs: 5", "epoch: 5"))
    _refused(
        arguments, f"{tmp_path}/file.yaml:5: unknown key train.epoch (value 5); did you mean train.epochs?", capsys
    )


_COMMANDS = [
    (["dataset", "built"], "No such command 'built'"),
    (["config", "check"], "name one with -c FILE"),
    (["config", "check", "-c"], "requires an argument"),
    (["config", "check", "-c", "none.yaml"], "config file 'none.yaml' does not exist"),
    (["config", "check", "--colour"], "No such option"),
    (["config", "check", "-c", "sweep.yaml", "--output", "xml"], "'xml' is not one of"),
    (["dataset", "build", "-c", "sweep.yaml"], "dataset is the name 'adult'"),
    (["dataset", "show"], "no dataset: name one"),
    (["dataset", "show", "adult", "--root", "out"], "no dataset named 'adult' below"),
    (["dataset", "show", "a b", "--root", "out"], "is not the name of a dataset"),
    (["dataset", "show", "./out"], "is neither <root>/datasets/<name> nor"),
    (["dataset", "show", "adult@1234", "--root", "out"], "is not a digest"),
    (["dataset", "verify", "adult", "-c", "sweep.yaml", "--root", "out"], "both name a root"),
    (["train", "run", "-c", "sweep.yaml"], "no dataset named 'adult' below"),
    (["tune", "run", "-c", "adult.yaml"], "has no tune"),
    (["runs", "list", "--root", "out"], "nothing has run below"),
    (["runs", "list", "-s", "root=b"], "there is no config file to override"),
    (["runs", "show", "none", "--root", "out"], "nothing has run below"),
    (["runs", "plot"], "Missing argument"),
    (["jobs", "path", "deploy"], "'deploy' is not one of"),
    (["demo", "--trials", "0"], "0 is not in the range"),
    (["demo", "--root", "s3://key:hidden@bucket"], "holds credentials"),
]


@pytest.mark.parametrize(("arguments", "message"), _COMMANDS, ids=[" ".join(arguments) for arguments, _ in _COMMANDS])
def test_a_wrong_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("adult.yaml").write_text(DATASET)
    Path("sweep.yaml").write_text(SWEEP)
    _refused(arguments, message, capsys)


_TEN = [
    ("config check -c adult.yaml -s dataset.keys=[a]", "did you mean dataset.key?"),
    ("config check -c adult.yaml -s dataset.label.type=ranking", "want binary, multiclass, multilabel or regression"),
    ("config check -c sweep.yaml -s train.workers={min:\\ 3,\\ max:\\ 1} --output json", "min 3 is more than max 1"),
    ("config check -c none.yaml", "does not exist"),
    ("config chekc -c adult.yaml", "No such command"),
    ("dataset build -c sweep.yaml", "dataset is the name 'adult'"),
    ("dataset show s3://key:hidden@bucket/datasets/a", "holds credentials"),
    ("train run -c sweep.yaml --run-id one -s root=/proc/mltrain", "choose another root"),
    ("tune run -c sweep.yaml -s tune=null", "has no tune"),
    ("runs show none --root ./nothing", "nothing has run below"),
]


@pytest.mark.parametrize(
    ("line", "message"), _TEN, ids=[line.split(" -")[0] + str(n) for n, (line, _) in enumerate(_TEN)]
)
def test_a_wrong_command_line_of_the_installed_command(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "adult.yaml").write_text(DATASET)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    command: list[str | Path] = [Path(sys.executable).parent / "mltrain", *shlex.split(line)]
    ended = processes.run(command, tmp_path / "logs", cwd=tmp_path)
    assert ended.exit_code == 2, ended.stderr
    assert message in ended.stderr
    assert bool(ended.stdout) == ("--output json" in line)
    assert "Traceback" not in ended.stderr
    assert "hidden" not in ended.stderr + ended.stdout

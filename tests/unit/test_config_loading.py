"""Files, extends, variables, overrides and paths; what comes out is final and can be written down again."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mltrain import config
from mltrain.config import DatasetFile, Experiment
from mltrain.errors import ConfigError, NotFoundError

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
objective: {metric: validation/auc}
train: {epochs: 2, optimizer: {lr: 1e-3}}
"""


def write(folder: Path, text: str, name: str = "file.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load_dataset(path: Path, *overrides: str) -> DatasetFile:
    return config.load_dataset(path, overrides)


def load_experiment(path: Path, *overrides: str) -> Experiment:
    return config.load_experiment(path, overrides)


def test_which_file_it_is_follows_from_its_keys(tmp_path: Path) -> None:
    assert isinstance(config.load(write(tmp_path, DATASET)), DatasetFile)
    assert isinstance(config.load(write(tmp_path, EXPERIMENT)), Experiment)
    assert isinstance(config.load(write(tmp_path, "name: a\ndataset: adult\n")), Experiment)


def test_an_experiment_that_holds_its_dataset_can_be_built(tmp_path: Path) -> None:
    path = write(tmp_path, f"{DATASET}model: {{}}\ntags: {{team: growth}}\n")
    assert isinstance(config.load(path), Experiment)
    file = config.load_dataset(path)
    assert (file.name, file.dataset.key, file.tags) == ("adult", ("row_id",), {"team": "growth"})
    with pytest.raises(ConfigError, match="dataset is the name 'adult'"):
        config.load_dataset(write(tmp_path, EXPERIMENT))


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = EXPERIMENT + "  # exponents without a dot; yes is a word\ntags: {a: yes, b: 'no'}\n"
    loaded = load_experiment(write(tmp_path, text), "train.optimizer.lr=1e-4", "train.seed=0o17")
    assert loaded.train.optimizer.lr == 1e-4
    assert loaded.train.seed == 15
    assert loaded.tags == {"a": "yes", "b": "no"}


def test_defaults_are_final_and_depend_on_what_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, EXPERIMENT)
    adamw = load_experiment(path).train.optimizer
    sgd = load_experiment(path, "train.optimizer.name=sgd").train.optimizer
    assert (adamw.weight_decay, adamw.betas, adamw.momentum) == (0.01, (0.9, 0.999), None)
    assert (sgd.weight_decay, sgd.betas, sgd.momentum) == (0.0, None, 0.0)
    assert load_experiment(path).objective.mode == "max"
    assert load_experiment(path, "objective.metric=validation/log_loss").objective.mode == "min"
    assert load_experiment(path, "train={max_steps: 10}").train.epochs is None
    assert load_experiment(path, "train={}").train.epochs == 5
    asha = load_experiment(path, "tune={space: {train.optimizer.lr: {choice: [1e-3]}}, scheduler: {name: asha}}").tune
    assert asha is not None
    assert (asha.trials, asha.scheduler.grace_steps, asha.scheduler.reduction_factor) == (10, 1, 3)


_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
_TOWER = "a0: &a0 " + "[" * 60 + "]" * 60 + "\na1: " + "[" * 60 + "*a0" + "]" * 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tags: " + "[" * 300, "file.yaml:1: nested more than 100 deep"),
        ("tags: " + "[" * 100 + "]" * 100, "file.yaml:1: nested more than 100 deep"),
        (_TOWER, "file.yaml:2: nested more than 100 deep"),
        (_BOMB, "file.yaml:5: more than 100,000 values"),
        ("tags: &a [*a]", r"file.yaml:1: \*a stands inside of what it stands for"),
        ("seed: " + "9" * 5000, "file.yaml:1: a value cannot be read: Exceeds the limit"),
        ("day: 2026-13-45", "file.yaml:1: a value cannot be read: month must be in 1..12"),
        ("# " + "x" * (1 << 20), "file.yaml: the file is longer than 1,048,576 bytes"),
        ("[1, 2]", "file.yaml: the file is a list; want a mapping"),
        ("12", "file.yaml: the file is a number; want a mapping"),
        ("true", "file.yaml: the file is a bool; want a mapping"),
        ("words", "file.yaml: the file is text; want a mapping"),
        ("", "file.yaml: the file is empty; want a mapping"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_no_person_wrote_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path, text))


def test_aliases_within_reason_are_copies(tmp_path: Path) -> None:
    text = DATASET.replace("[row_id]", "&key [row_id]") + "  keep: &kept [a, b]\ntags: {a: &text words, b: *text}\n"
    loaded = config.load(write(tmp_path, text))
    assert loaded.tags == {"a": "words", "b": "words"}


def test_a_mapping_too_deep_is_refused() -> None:
    deep: list[object] = []
    deep.append(deep)
    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        config.parse({"name": "a", "tags": {"b": deep}})
    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        config.parse({"name": "a"}, {"tags": {"b": deep}})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("0", (0, 0)), ("4", (4, 4)), ("{min: 2, max: 8}", (2, 8)), ("{min: 2}", (2, 2)), ("{max: 8}", (1, 8))],
)
def test_workers_are_a_number_or_a_range(tmp_path: Path, given: str, wanted: tuple[int, int]) -> None:
    workers = load_experiment(write(tmp_path, EXPERIMENT), f"train.workers={given}").train.workers
    assert (workers.min, workers.max) == wanted


def test_what_workers_may_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.workers is 'two'; want a whole number, or a mapping with min and max"):
        load_experiment(write(tmp_path, EXPERIMENT), "train.workers=two")


@pytest.mark.parametrize(
    ("given", "method", "column"),
    [
        ("{group: user}", "group", "user"),
        ("{time: day}", "time", "day"),
        ("{column: part}", "column", "part"),
        ("{method: group, column: user}", "group", "user"),
        ("{method: stratified}", "stratified", None),
        ("{seed: 3}", "random", None),
    ],
)
def test_splits_have_short_forms(tmp_path: Path, given: str, method: str, column: str | None) -> None:
    split = load_dataset(write(tmp_path, DATASET), f"dataset.split={given}").dataset.split
    assert (split.method, split.column) == (method, column)
    assert list(split.fractions) == ([] if method == "column" else ["train", "validation", "test"])


def test_one_label_and_several_are_read_alike(tmp_path: Path) -> None:
    path = write(tmp_path, DATASET)
    one = load_dataset(path).dataset.all_labels
    assert list(one) == ["income"]
    assert one["income"].positive == ">50K"
    several = load_dataset(
        path,
        "dataset.label=null",
        "dataset.labels={click: {type: binary}, buy: {column: bought, type: regression}}",
    ).dataset.all_labels
    assert [(task, label.column) for task, label in several.items()] == [("click", "click"), ("buy", "bought")]


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "train: {epochs: 9, seed: 4, workers: {min: 1, max: 3}}\ntags: {a: '1', b: '2'}", "base/top.yaml")
    write(tmp_path, "extends: top.yaml\ntrain: {seed: 5}", "base/middle.yaml")
    loaded = load_experiment(write(tmp_path, f"extends: base/middle.yaml\n{EXPERIMENT}tags: {{b: '3'}}\n"))
    assert (loaded.train.epochs, loaded.train.seed, loaded.train.workers.max) == (2, 5, 3)
    assert loaded.tags == {"a": "1", "b": "3"}
    text = EXPERIMENT.replace("{epochs: 2,", "{workers: null,")
    taken_back = load_experiment(write(tmp_path, f"extends: base/middle.yaml\n{text}"))
    assert taken_back.train.workers.max == 0


def test_extends_replaces_mappings_that_are_one_value(tmp_path: Path) -> None:
    write(tmp_path, f"{DATASET}  split: {{group: user, fractions: {{train: 0.5, validation: 0.5}}}}\n", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\ndataset:\n  split: {time: day}\n")
    split = load_dataset(path).dataset.split
    assert (split.method, list(split.fractions)) == ("time", ["train", "validation", "test"])


def test_paths_are_relative_to_the_file_that_they_are_written_in(tmp_path: Path) -> None:
    write(tmp_path, "def build(schema): ...", "team/model.py")
    write(tmp_path, "root: ../shared\nmodel: {factory: './model.py:build'}", "team/base.yaml")
    text = "name: a\nextends: ../team/base.yaml\ndataset: ./out/datasets/adult\ncache: {path: ./cache}\n"
    loaded = load_experiment(write(tmp_path, text, "mine/file.yaml"))
    assert loaded.root == str(tmp_path / "shared")
    assert loaded.model.factory == f"{tmp_path}/team/model.py:build"
    assert loaded.dataset == str(tmp_path / "mine/out/datasets/adult")
    assert loaded.cache.path == str(tmp_path / "mine/cache")
    overridden = load_experiment(tmp_path / "mine/file.yaml", "root=here")
    assert overridden.root == str(tmp_path / "mine/here")


def test_uris_names_and_homes_stay_what_they_are(tmp_path: Path) -> None:
    loaded = load_dataset(write(tmp_path, DATASET), "root=s3a://ml/prod/", "dataset.table=lake.adult")
    assert (loaded.root, loaded.dataset.table) == ("s3://ml/prod", "lake.adult")
    assert loaded.cache.path.startswith("~")
    assert loaded.cache.directory.is_absolute()
    (tmp_path / "lake.adult").mkdir()
    assert load_dataset(tmp_path / "file.yaml", "dataset.table=lake.adult").dataset.table == str(
        tmp_path / "lake.adult"
    )


def test_variables_are_put_in_place_with_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_ROOT", "s3://ml")
    monkeypatch.setenv("EPOCHS", "7")
    text = (
        "name: a\ndataset: adult\nroot: ${ML_ROOT}/prod\n"
        "train:\n  epochs: ${EPOCHS}\ntags: {a: '${EPOCHS}', b: '$${EPOCHS}'}\n"
    )
    loaded = load_experiment(write(tmp_path, text))
    assert (loaded.root, loaded.train.epochs) == ("s3://ml/prod", 7)
    assert loaded.tags == {"a": "7", "b": "${EPOCHS}"}


def test_overrides_set_the_value_at_a_key(tmp_path: Path) -> None:
    path = write(tmp_path, EXPERIMENT)
    loaded = load_experiment(
        path,
        "train.epochs=3",
        "train.epochs=4",
        "train.optimizer={name: sgd, lr: 0.5}",
        "model.args.hidden=[8]",
        "model.args.nested.deep=true",
        "tune.space.train.optimizer.lr={loguniform: [1e-4, 1e-1]}",
        "tags.a=x=y",
    )
    assert loaded.train.epochs == 4
    assert (loaded.train.optimizer.name, loaded.train.optimizer.lr) == ("sgd", 0.5)
    assert loaded.model.args == {"hidden": [8], "nested": {"deep": True}}
    assert loaded.tune is not None
    assert loaded.tune.space == {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}}
    assert loaded.tags == {"a": "x=y"}
    same = config.load(path, {"train.epochs": 3, "train.workers": 0, "train.max_steps": 200})
    assert isinstance(same, Experiment)
    assert (same.train.epochs, same.train.max_steps) == (3, 200)


def test_overrides_reach_keys_that_hold_dots(tmp_path: Path) -> None:
    text = f"{DATASET}  features: {{'*': {{}}, 'user.id': {{type: hashed}}}}\n"
    path = write(tmp_path, text)
    assert load_dataset(path, "dataset.features.user.id.buckets=7").dataset.features["user.id"].buckets == 7
    quoted = load_dataset(path, 'dataset.features."item.id".type=hashed').dataset.features
    assert quoted["item.id"].type == "hashed"
    assert "raw_*" in load_dataset(path, "dataset.features.raw_*.drop=true").dataset.features


@pytest.mark.parametrize(
    "text",
    [
        DATASET,
        DATASET
        + "  split: {time: day, seed: 3}\n  version: 3\n  features: {'x*': {drop: true}, '2020': {impute: 0}}\n",
        DATASET + "  split: {column: part}\n  timestamp: 2024-05-01\n  rows_per_shard: 1000\n",
        EXPERIMENT,
        EXPERIMENT
        + "tags: {a: '1e3', b: 'null', c: '${X}', d: '2024-01-01', e: '', f: ' x', g: 'a: b', h: '#'}\n".replace(
            "${X}", "$${X}"
        ),
        EXPERIMENT + "tune: {search: grid, space: {model.args.x: {choice: [1, null, a, [2]]}}}\n",
        EXPERIMENT
        + "cluster: {address: 'localhost:6379', runtime_env: {env_vars: {A: '1'}}}\nloggers: [tensorboard]\n",
    ],
)
def test_what_is_written_down_reads_back_equal(tmp_path: Path, text: str) -> None:
    loaded = config.load(write(tmp_path, text))
    again = config.load(write(tmp_path, config.to_yaml(loaded), "elsewhere/resolved.yaml"))
    assert again == loaded
    assert config.to_yaml(again) == config.to_yaml(loaded)
    assert config.digest(again) == config.digest(loaded)


@settings(deadline=None, max_examples=40)
@example({"${a}": "${b} $${c}", "null": "true", "1": "1e3"})
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4))
def test_any_text_survives_being_written_down(tags: dict[str, str]) -> None:
    text = config.to_yaml(config.parse({"name": "a", "dataset": "b", "tags": tags}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        assert config.load(path).tags == tags


def test_parse_is_load_of_a_mapping(tmp_path: Path) -> None:
    mapping = {"name": "a", "dataset": {"table": "t", "label": {"column": "y", "type": "regression"}}}
    parsed = config.parse(mapping, {"dataset.key": ["id"]}, tmp_path)
    assert isinstance(parsed, DatasetFile)
    assert (parsed.dataset.table, parsed.dataset.key) == (str(tmp_path / "t"), ("id",))
    assert config.parse(parsed.model_dump(mode="json")) == parsed
    assert mapping == {"name": "a", "dataset": {"table": "t", "label": {"column": "y", "type": "regression"}}}


def test_a_trial_is_its_experiment_with_other_values(tmp_path: Path) -> None:
    loaded = load_experiment(write(tmp_path, EXPERIMENT))
    trial = config.parse(loaded.model_dump(mode="json"), {"train.optimizer.name": "sgd", "model.args.hidden": [4]})
    assert isinstance(trial, Experiment)
    assert (trial.train.optimizer.name, trial.train.optimizer.momentum) == ("sgd", 0.0)


def test_the_digest_is_of_what_determines_the_result(tmp_path: Path) -> None:
    path = write(tmp_path, EXPERIMENT)
    digest = config.digest(config.load(path))
    for same in (
        *(
            "name=b",
            "root=s3://b",
            "tags={a: b}",
            "storage.deadline_s=3",
            "cache.budget_bytes=1",
            "loggers=[tensorboard]",
        ),
        *("train.workers=4", "train.checkpoint.keep=9", "train.heartbeat.misses=9", "cluster.address=local"),
        "train.max_local_batch_size=7",
    ):
        assert config.digest(config.load(path, [same])) == digest, same
    for other in ("train.seed=9", "dataset=b", "train.optimizer.lr=3", "model.args.x=1", "train.global_batch_size=9"):
        assert config.digest(config.load(path, [other])) != digest, other


def test_where_a_file_lies_is_not_in_the_digest(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("{args:", "{factory: './model.py:build', args:")
    digests = set()
    for folder in ("one", "two"):
        write(tmp_path, "", f"{folder}/model.py")
        digests.add(config.digest(config.load(write(tmp_path, text, f"{folder}/file.yaml"))))
    assert len(digests) == 1


def test_a_stored_config_loads_where_its_code_does_not_lie(tmp_path: Path) -> None:
    loaded = load_experiment(write(tmp_path, EXPERIMENT), "model.factory=/gone/model.py:build")
    assert loaded.model.factory == "/gone/model.py:build"


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.yaml"):
        config.load(tmp_path / "none.yaml")


def test_all_that_is_wrong_is_said_at_once_with_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\ndataset: b\ntrain:\n  epochs: many\n  sede: 3\n  precision: fp8\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:4: train.epochs is 'many'; want a whole number",
        f"{path}:6: train.precision is 'fp8'; want fp32 or bf16",
        f"{path}:5: unknown key train.sede (value 3); did you mean train.seed?",
    ]


def test_the_line_is_that_of_the_file_that_said_it(tmp_path: Path) -> None:
    base = write(tmp_path, "\n\ntrain: {epochs: -1}\n", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nname: a\ndataset: b\ntrain: {seed: -1}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert f"{base}:3: train.epochs is -1; want at least 1" in str(caught.value)
    assert f"{path}:4: train.seed is -1; want at least 0" in str(caught.value)


def test_wide_files_load_fast_enough_to_be_checked_often(tmp_path: Path) -> None:
    features = "".join(f"    column_{number}: {{type: numeric}}\n" for number in range(2000))
    loaded = load_dataset(write(tmp_path, f"{DATASET}  features:\n{features}"))
    assert len(loaded.dataset.features) == 2000


def test_nothing_of_the_environment_but_named_variables_is_read(tmp_path: Path) -> None:
    loaded = config.to_yaml(config.load(write(tmp_path, EXPERIMENT)))
    assert os.environ["PATH"] not in loaded

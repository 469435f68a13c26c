"""The installed command: what it prints where, how it ends, and what a signal does."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.storage import open_store
from tests.support import faults_http, processes
from tests.support.faults_http import Fault
from tests.support.processes import Completed
from tests.support.s3 import S3Server

MLTRAIN = Path(sys.executable).parent / "mltrain"
EXPERIMENT = "name: one\ndataset: adult\nroot: ${ML_ROOT}\ntrain: {max_steps: 3}\n"


def _mltrain(tmp_path: Path, *words: str, env: dict[str, str] | None = None) -> Completed:
    return processes.run([MLTRAIN, *words], tmp_path / "logs", cwd=tmp_path, env=env)


def test_help_names_every_command(tmp_path: Path) -> None:
    ended = _mltrain(tmp_path, "--help")
    assert ended.exit_code == 0
    for command in ("demo", "doctor", "config", "dataset", "train", "tune", "runs", "jobs"):
        assert command in ended.stdout


def test_version(tmp_path: Path) -> None:
    import mltrain

    assert mltrain.__version__ in _mltrain(tmp_path, "--version").stdout


def test_config_check_prints_what_loads_again(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(EXPERIMENT)
    first = _mltrain(tmp_path, "config", "check", "-c", "one.yaml", env={"ML_ROOT": "s3://ml"})
    assert (first.exit_code, first.stderr) == (0, "")
    (tmp_path / "two.yaml").write_text(first.stdout)
    second = _mltrain(tmp_path, "config", "check", "-c", "two.yaml")
    assert second.stdout == first.stdout
    as_json = _mltrain(tmp_path, "config", "check", "-c", "two.yaml", "--output", "json")
    assert json.loads(as_json.stdout)["root"] == "s3://ml"


def test_importing_mltrain_loads_no_engine_and_no_part(tmp_path: Path) -> None:
    heavy = ["pyspark", "torch", "ray", "horovod", "pyarrow", "pydantic", "obstore", "deltalake", "rich"]
    for module in ("mltrain", "mltrain.cli", "mltrain.cli.app"):
        code = f"import sys, {module}; print(sorted(set({heavy}) & set(sys.modules)))"
        ended = processes.run([sys.executable, "-c", code], tmp_path / module)
        assert ended.stdout == "[]\n", module


def test_every_part_is_there_after_import_mltrain(tmp_path: Path) -> None:
    parts = ["config", "data", "errors", "evaluate", "features", "models", "results", "storage", "train", "tune"]
    code = f"import mltrain; print(*(getattr(mltrain, part).__name__ for part in {parts}))"
    wanted = " ".join(f"mltrain.{part}" for part in parts)
    assert processes.run([sys.executable, "-c", code], tmp_path).stdout == f"{wanted}\n"


def test_config_storage_and_data_need_no_engine(tmp_path: Path) -> None:
    code = (
        "import sys, mltrain; mltrain.config, mltrain.data, mltrain.results; import mltrain.storage\n"
        "print(sorted({'pyspark', 'torch', 'ray', 'horovod'} & set(sys.modules)))"
    )
    assert processes.run([sys.executable, "-c", code], tmp_path).stdout == "[]\n"


@pytest.fixture
def failing_root(s3_server: S3Server) -> Iterator[dict[str, str]]:
    """An environment in which storage answers 503 for as long as anybody asks."""
    with faults_http.before(s3_server.endpoint) as proxy:
        proxy.fail(Fault.UNAVAILABLE, times=1_000_000)
        yield {"AWS_ENDPOINT_URL": proxy.endpoint, "ML_ROOT": s3_server.bucket()}


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_that_cannot_be_resumed(
    tmp_path: Path, failing_root: dict[str, str], number: signal.Signals, exit_code: int
) -> None:
    command: list[str | Path] = [MLTRAIN, "dataset", "show", f"{failing_root['ML_ROOT']}/datasets/adult"]
    with processes.started(command, tmp_path / "logs", env=failing_root) as process:
        process.wait_for_output("trying again", 60)
        process.send(number)
        ended = process.wait(30)
    assert ended.exit_code == exit_code
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_signal_before_the_first_step_is_a_resumable_stop(
    tmp_path: Path, failing_root: dict[str, str], number: signal.Signals, command: str
) -> None:
    text = f"{EXPERIMENT}tune: {{trials: 1, space: {{train.seed: {{choice: [1]}}}}}}\n"
    (tmp_path / "one.yaml").write_text(text)
    words: list[str | Path] = [MLTRAIN, command, "run", "-c", "one.yaml", "--run-id", "a", "--output", "json"]
    with processes.started(words, tmp_path / "logs", env=failing_root, cwd=tmp_path) as process:
        process.wait_for_output("trying again", 120)
        process.send(number)
        ended = process.wait(60)
    assert ended.exit_code == 75, ended.stderr
    said = json.loads(ended.stdout)
    assert said["status"] == "stopped"
    assert said["resume_command"] == f"mltrain {command} run -c one.yaml --run-id a --output json"
    assert "Traceback" not in ended.stderr


def test_an_outage_past_the_deadline_is_a_failure_that_names_the_object(
    tmp_path: Path, failing_root: dict[str, str]
) -> None:
    (tmp_path / "one.yaml").write_text(EXPERIMENT)
    words = ("dataset", "show", "-c", "one.yaml", "-s", "storage.deadline_s=1")
    ended = _mltrain(tmp_path, *words, env=failing_root)
    assert ended.exit_code == 1, ended.stderr
    assert f"{failing_root['ML_ROOT']}/datasets/adult" in ended.stderr
    assert "503" in ended.stderr


def test_a_mistake_of_ours_or_of_user_code_says_where_its_traceback_is(tmp_path: Path) -> None:
    open_store(tmp_path / "root").put("datasets/adult.json", b'{"digest": 3}')
    words = ("dataset", "show", "adult", "--root", "root")
    ended = _mltrain(tmp_path, *words, env={"XDG_STATE_HOME": str(tmp_path / "state")})
    assert ended.exit_code == 1
    assert "Traceback" not in ended.stderr
    assert "error: " in ended.stderr
    log = next((tmp_path / "state" / "mltrain" / "logs").iterdir())
    assert "Traceback" in log.read_text()
    assert "Traceback" in _mltrain(tmp_path, *words, "--debug").stderr


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, format: str) -> None:
    # More than a pipe holds.
    tags = "".join(f"  tag-{n}: {'x' * 90}\n" for n in range(2000))
    (tmp_path / "one.yaml").write_text(f"name: one\ndataset: adult\ntags:\n{tags}")
    line = f"set -o pipefail; {MLTRAIN} config check -c one.yaml --output {format} | true"
    ended = processes.run(["bash", "-c", line], tmp_path / "logs", cwd=tmp_path)
    assert (ended.exit_code, ended.stderr) == (0, "")


@pytest.mark.parametrize("words", ["--help", "--version", "dataset show --help"])
def test_the_reader_of_a_page_may_leave_early(tmp_path: Path, words: str) -> None:
    ended = processes.run(["bash", "-c", f"set -o pipefail; {MLTRAIN} {words} | true"], tmp_path / "logs")
    assert (ended.exit_code, ended.stderr) == (0, "")


@pytest.mark.parametrize("words", ["dataset show a --root .", "config check", "dataset show a --nope"])
def test_a_failure_is_json_on_stdout_where_that_was_asked_for(tmp_path: Path, words: str) -> None:
    ended = _mltrain(tmp_path, *words.split(), "--output", "json")
    said = json.loads(ended.stdout)
    assert said["exit_code"] == ended.exit_code == 2
    assert ended.stderr == f"error: {said['error']}\n"
    assert _mltrain(tmp_path, *words.split()).stdout == ""


def test_jobs_are_found_and_are_python(tmp_path: Path) -> None:
    for name in ("build_dataset", "train", "sweep"):
        path = Path(_mltrain(tmp_path, "jobs", "path", name).stdout.strip())
        compile(path.read_text(), str(path), "exec")
    assert "io.delta:delta-spark" in _mltrain(tmp_path, "jobs", "packages").stdout

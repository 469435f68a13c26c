"""Set-up names what the machine lacks before it builds anything."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mltrain.collectives import HOROVOD_BUILD

ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = ("g++", "make", "patch")


def _tool(directory: Path, name: str, says: str = "", exit_code: int = 0) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {exit_code}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory of programs that says it has everything; nothing else is on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in _PROGRAMS:
        _tool(directory, name)
    _tool(directory, "java", 'openjdk version "17.0.15" 2025-04-15')
    _tool(directory, "go", "go version go1.26.8 linux/amd64")
    return directory


def _setup(tools: Path, cache: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.setup", *flags]
    fixed = {"PATH": str(tools), "PYTHON": sys.executable, "XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
    return subprocess.run(command, cwd=ROOT, env={**fixed, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("program", "package"),
    [("java", "openjdk-17-jdk-headless"), ("g++", "g++"), ("make", "make"), ("patch", "patch"), ("go", "golang-go")],
)
def test_a_missing_program_is_named_with_its_package_and_nothing_is_built(
    tools: Path, tmp_path: Path, program: str, package: str
) -> None:
    (tools / program).unlink()
    done = _setup(tools, tmp_path / "cache", "--tests")
    assert done.returncode == 1
    assert f"apt-get install {package}\n" in done.stderr
    assert "nothing was built" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_everything_that_is_missing_is_named_at_once(tools: Path, tmp_path: Path) -> None:
    for name in (*_PROGRAMS, "java", "go"):
        (tools / name).unlink()
    said = _setup(tools, tmp_path, "--tests").stderr
    assert [name for name in (*_PROGRAMS, "Java", "Go") if name not in said] == []


def test_go_is_asked_for_only_by_the_tests(tools: Path, tmp_path: Path) -> None:
    (tools / "go").unlink()
    (tools / "patch").unlink()
    assert "golang" not in _setup(tools, tmp_path).stderr


def test_a_java_of_another_version_is_named_with_what_was_found(tools: Path, tmp_path: Path) -> None:
    _tool(tools, "java", 'openjdk version "11.0.2" 2019-01-15')
    assert "Java 17 or 21 for Spark (java is 11" in _setup(tools, tmp_path).stderr


def test_java_home_comes_before_the_path(tools: Path, tmp_path: Path) -> None:
    said = _setup(tools, tmp_path, JAVA_HOME=str(tmp_path / "jdk")).stderr
    assert f"JAVA_HOME={tmp_path / 'jdk'} holds none" in said


def test_an_old_go_is_named_with_what_was_found(tools: Path, tmp_path: Path) -> None:
    _tool(tools, "go", "go version go1.19.8 linux/amd64")
    assert "go is 1.19" in _setup(tools, tmp_path, "--tests").stderr


def test_a_go_that_fetches_newer_ones_is_enough_unless_it_may_not(tools: Path, tmp_path: Path) -> None:
    (tools / "patch").unlink()  # so that set-up ends here
    go = tools / "go"
    go.write_text('#!/bin/sh\n[ "$1" = env ] && echo "$TOOLCHAIN" || echo go version go1.22.1 linux/amd64\n')
    assert "Go" not in _setup(tools, tmp_path, "--tests", TOOLCHAIN="auto").stderr
    assert "go is 1.22" in _setup(tools, tmp_path, "--tests", TOOLCHAIN="local").stderr


def test_a_version_managers_shim_that_does_not_run_is_no_python(tools: Path, tmp_path: Path) -> None:
    _tool(tools, "python3.12", "command not found", exit_code=127)
    said = _setup(tools, tmp_path, PYTHON=str(tools / "python3.12")).stderr
    assert "Python 3.11 or 3.12 (none found)" in said


def test_ci_installs_only_packages_that_are_missing(tools: Path, tmp_path: Path) -> None:
    (tools / "g++").unlink()
    (tools / "patch").unlink()
    command = [sys.executable, "-m", "cluster.setup.prerequisites", "--tests"]
    environment = {"PATH": str(tools), "PYTHON": sys.executable, "HOME": str(tmp_path)}
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert sorted(said.split()) == ["g++", "patch"]


def _locked() -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if "==" in line and not line.startswith((" ", "#")):
            name, _, rest = line.partition("==")
            versions.setdefault(name, set()).add(rest.split()[0])
    return versions


def test_the_lock_file_holds_what_setup_cfg_asks_for() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    blocks = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    asked = [Requirement(line) for block in blocks for line in block.split("\n") if line.strip()]
    locked = _locked()
    stale = [
        str(requirement)
        for requirement in asked
        if requirement.name != "mltrain"
        and not all(
            version in requirement.specifier for version in locked.get(requirement.name.replace(".", "-"), {""})
        )
    ]
    assert not stale, "run `make lock`"


def test_no_registry_is_named_in_the_lock_files() -> None:
    for path in (ROOT / "requirements.lock", *ROOT.glob("cluster/**/*.txt")):
        assert "://" not in path.read_text(), path


def test_horovod_stands_outside_the_lock_file() -> None:
    assert "horovod" not in _locked()


def test_the_wheel_is_the_build_that_the_library_needs() -> None:
    script = (ROOT / "cluster" / "horovod" / "build.sh").read_text()
    assert f"\nversion={HOROVOD_BUILD} " in script

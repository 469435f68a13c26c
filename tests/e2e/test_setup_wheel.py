"""mltrain installed from its wheel, without the checkout."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment that holds the wheel, and sees this environment's other distributions."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "cf", work / "source.tar", "--null", "-T", "-"], cwd=ROOT, input=listed, check=True)
    subprocess.run(["tar", "xf", work / "source.tar", "-C", source], check=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(source)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = work.glob("*.whl")
    environment = work / "environment"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", environment, "install", "-q", "--no-deps", wheel], check=True
    )
    others = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "others.pth").write_text(f"{others}\n")
    return environment / "bin"


@pytest.mark.parametrize("name", ["build_dataset", "train", "sweep"])
def test_the_wheel_holds_the_job_scripts(installed: Path, tmp_path: Path, name: str) -> None:
    done = processes.run([installed / "mltrain", "jobs", "path", name], tmp_path, cwd=tmp_path)
    script = Path(done.stdout.strip())
    assert script.is_relative_to(installed.parent)
    assert script.read_bytes() == (ROOT / "jobs" / f"{name}.py").read_bytes()


def test_the_wheel_holds_the_sample(installed: Path, tmp_path: Path) -> None:
    code = "from mltrain.cli import shipped; print(shipped.path('examples/data/adult.csv'))"
    done = processes.run([installed / "python", "-c", code], tmp_path, cwd=tmp_path)
    assert Path(done.stdout.strip()).read_bytes() == (ROOT / "examples" / "data" / "adult.csv").read_bytes()


def test_the_wheels_version_is_the_librarys(installed: Path, tmp_path: Path) -> None:
    code = "import mltrain; from importlib.metadata import version; print(mltrain.__version__ == version('mltrain'))"
    assert processes.run([installed / "python", "-c", code], tmp_path, cwd=tmp_path).stdout == "True\n"


def test_a_file_that_the_installation_lacks_is_named(installed: Path, tmp_path: Path) -> None:
    code = "from mltrain.cli import shipped; shipped.path('jobs/other.py')"
    done = processes.run([installed / "python", "-c", code], tmp_path, cwd=tmp_path)
    assert "MissingDependencyError: jobs/other.py is not among the files" in done.stderr

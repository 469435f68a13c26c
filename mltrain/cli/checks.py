"""What doctor looks at, one function a thing. Each answers rows and raises nothing that the machine can cause.

An engine is tried in a process of its own: one that crashes or hangs is a finding, not the end of doctor.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from mltrain.errors import MltrainError
from mltrain.features import packages

JAVAS = (17, 21)
PYTHONS = ((3, 11), (3, 12))
FREE_BYTES = 5 << 30
_ENGINE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        status: it works; it is not there; it is there and does not work.
        detail: what was seen.
        remedy: what to install or to do; empty when ok.
        where: "here", or the executor or worker.
    """

    name: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    remedy: str = ""
    where: str = "here"


def python() -> Check:
    """The interpreter's version."""
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info[:2] in PYTHONS:
        return Check("python", "ok", found)
    return Check("python", "broken", found, "use Python 3.11 or 3.12")


def requirements(extra: str) -> list[Check]:
    """Each distribution that ``mltrain[extra]`` asks for, as installed; ``extra`` "" is the core."""
    asked = [Requirement(line) for line in metadata.requires("mltrain") or ()]
    rows = []
    for requirement in asked:
        environment = {"extra": extra}
        if requirement.name == "mltrain" or (requirement.marker is None) != (extra == ""):
            continue
        if requirement.marker is None or requirement.marker.evaluate(environment):
            rows.append(_installed(requirement, extra))
    return rows


def _installed(requirement: Requirement, extra: str) -> Check:
    install = f"pip install 'mltrain[{extra}]'" if extra else "pip install --force-reinstall mltrain"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "missing", "not installed", install)
    if found not in requirement.specifier:
        return Check(requirement.name, "broken", f"{found}, where mltrain needs {requirement.specifier}", install)
    return Check(requirement.name, "ok", found)


def java(environment: Mapping[str, str] = os.environ) -> list[Check]:
    """The Java that Spark would start: ``$JAVA_HOME/bin/java``, else the one on ``PATH``."""
    install = "install a JDK 17 (Debian: apt-get install openjdk-17-jdk-headless)"
    home = environment.get("JAVA_HOME")
    rows = []
    if home:
        program: str | None = str(Path(home, "bin", "java"))
        if not os.access(str(program), os.X_OK):
            return [
                Check("JAVA_HOME", "broken", f"{home} holds no bin/java", "unset JAVA_HOME, or point it at a JDK 17")
            ]
        rows.append(Check("JAVA_HOME", "ok", home))
    else:
        program = shutil.which("java", path=environment.get("PATH", ""))
    if program is None:
        return [Check("java", "missing", "no java on PATH and no JAVA_HOME", install)]
    done = subprocess.run(
        [program, "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    said = re.search(r'version "(\d+)[^"]*"', done.stdout)
    if done.returncode != 0 or said is None:
        return [*rows, Check("java", "broken", f"`{program} -version` said: {_last_line(done.stdout)}", install)]
    if int(said.group(1)) not in JAVAS:
        return [*rows, Check("java", "broken", f"{program} is {said.group(0)}, Spark needs 17 or 21", install)]
    return [*rows, Check("java", "ok", f"{said.group(0)} at {program}")]


def jars(home: Path | None = None) -> list[Check]:
    """Delta's and s3a's jars in Spark's cache (Ivy), and what in Maven's cache keeps them from getting there.

    Args:
        home: as the JVM sees it, which asks the user database and not ``$HOME``.
    """
    home = home or Path(pwd.getpwuid(os.getuid()).pw_dir)
    coordinates = [coordinate.split(":") for coordinate in packages.packages().split(",")]
    kept = next(iter(sorted(home.glob(".ivy2*/jars"))), home / ".ivy2.5.2" / "jars")
    absent = [":".join(each) for each in coordinates if not (kept / f"{each[0]}_{each[1]}-{each[2]}.jar").exists()]
    rows = []
    if absent:
        detail = f"{kept} lacks {', '.join(absent)}"
        rows.append(Check("spark jars", "missing", detail, "`make setup`, or let Spark fetch them at its first start"))
        rows += _half_used_maven_cache(home / ".m2" / "repository", coordinates)
    else:
        rows.append(Check("spark jars", "ok", f"Delta {packages.DELTA.rsplit(':', 1)[1]} and s3a in {kept}"))
    return rows


def _half_used_maven_cache(repository: Path, coordinates: Sequence[Sequence[str]]) -> list[Check]:
    """Ivy believes a POM in Maven's local repository and then fails for want of the jar beside it."""
    rows = []
    for group, version in sorted({(group, version) for group, _, version in coordinates}):
        for pom in sorted(repository.joinpath(*group.split(".")).glob(f"*/{version}/*.pom")):
            holds_jar = "<packaging>pom</packaging>" not in pom.read_text(errors="replace")
            if holds_jar and not pom.with_suffix(".jar").exists():
                detail = f"{pom.parent} holds a POM without its jar: Spark will fail with NOT FOUND ... local-m2-cache"
                rows.append(Check("maven cache", "broken", detail, f"rm -r {pom.parent}"))
    return rows


def torch() -> list[Check]:
    """PyTorch runs, and sees the GPUs that the machine has."""
    rows = requirements("torch")
    if rows[0].status == "missing":
        return rows
    code = "import torch; torch.ones(2).sum(); print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    failed, said = _try(code)
    if failed:
        return [*rows, Check("pytorch", "broken", said, "pip install --force-reinstall 'mltrain[torch]'")]
    devices = list(Path("/dev").glob("nvidia[0-9]*"))
    if int(said) < len(devices):
        detail = f"the machine has {len(devices)} GPUs and PyTorch sees {said}"
        return [*rows, Check("cuda", "broken", detail, "check the driver: `nvidia-smi`, and CUDA_VISIBLE_DEVICES")]
    return [*rows, Check("cuda", "ok", f"{said} GPUs" if int(said) else "no GPU here: training runs on CPUs")]


_HOROVOD = """
import horovod.torch as hvd, torch
assert hasattr(hvd, "abort"), "hvd.abort is missing: this is the release, without the patches"
hvd.init()
assert hvd.allreduce(torch.ones(2), op=hvd.Sum).sum() == 2
print("Gloo and NCCL" if hvd.nccl_built() else "Gloo")
"""


def horovod() -> Check:
    """Horovod is the build that this mltrain needs, neither the release nor another, and a collective runs."""
    from mltrain.collectives import HOROVOD_BUILD

    build = "build it with `make setup` in mltrain's repository and install the wheel; pip installs the release"
    try:
        found = metadata.version("horovod")
    except metadata.PackageNotFoundError:
        return Check("horovod", "missing", "not installed: training runs with workers: 0 only", build)
    if found != HOROVOD_BUILD:
        detail = f"{found} is not mltrain's build, {HOROVOD_BUILD}: workers cannot train with it"
        return Check("horovod", "broken", detail, build)
    failed, said = _try(_HOROVOD)
    if failed:
        return Check("horovod", "broken", f"{found}: {said}", build)
    return Check("horovod", "ok", f"{found} with {said}")


def storage(root: str) -> Check:
    """Artefacts can be written below ``root``."""
    from mltrain.storage import open_store

    try:
        open_store(root).check_writable()
    except MltrainError as error:
        return Check("storage root", "broken", str(error), "grant write access, or choose another `root`")
    return Check("storage root", "ok", f"{root} can be written")


def disk(paths: Iterable[Path], needed_bytes: int = FREE_BYTES) -> list[Check]:
    """Room for caches and temporary files."""
    rows = []
    for path in paths:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        detail = f"{free / (1 << 30):.0f} GiB free at {path}"
        if free < needed_bytes:
            rows.append(Check("disk", "broken", detail, f"free {needed_bytes >> 30} GiB, or set cache.path"))
        else:
            rows.append(Check("disk", "ok", detail))
    return rows


def _try(code: str) -> tuple[bool, str]:
    """Runs a program in a Python of its own: whether it failed, and the last line it wrote."""
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ENGINE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return True, f"hung for {_ENGINE_TIMEOUT_S:.0f} s"
    if done.returncode != 0:
        return True, _last_line(done.stderr) or f"ended with exit code {done.returncode}"
    return False, _last_line(done.stdout)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

"""What the machine must have before anything is built, and the Debian package that brings what it lacks.

``python3 -m cluster.setup.prerequisites [--tests] [--hosts]`` prints the missing packages, for ``apt-get install``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PYTHONS = ((3, 11), (3, 12))
JAVAS = (17, 21)
GO = (1, 25)
# From here on Go fetches the release that a module asks for as a module, unless GOTOOLCHAIN=local.
GO_THAT_FETCHES = (1, 21)


@dataclasses.dataclass(frozen=True)
class Python:
    """An interpreter of the machine."""

    executable: str
    version: tuple[int, int]
    has_venv: bool
    has_headers: bool


@dataclasses.dataclass(frozen=True)
class Missing:
    """A prerequisite that is not there, and the Debian package to install, if one brings it."""

    what: str
    package: str


_PROBE = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps([getattr(sys, "_base_executable", sys.executable), list(sys.version_info[:2]),
    importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None,
    os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))]))
"""


def _output(*command: str) -> str:
    """What a command prints, or nothing when it cannot run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def probe(executable: str) -> Python | None:
    """What an interpreter is, or None where the command does not run (a version manager's shim, say)."""
    answer = _output(executable, "-c", _PROBE)
    if not answer:
        return None
    path, version, has_venv, has_headers = json.loads(answer)
    return Python(path, (version[0], version[1]), has_venv, has_headers)


def pythons(version: tuple[int, int]) -> list[Python]:
    """The interpreters of one version, those that can be built against first."""
    name = f"python{version[0]}.{version[1]}"
    candidates = [found for found in (shutil.which("python3"), shutil.which(name), f"/usr/bin/{name}") if found]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += sorted(str(path) for path in pyenv.glob(f"versions/*/bin/{name}"))
    found = [python for python in map(probe, candidates) if python and python.version == version]
    return sorted(found, key=lambda python: not (python.has_venv and python.has_headers))


def choose_python() -> Python | None:
    """The interpreter for ``.venv``: ``$PYTHON``, else the machine's ``python3``, else another supported one."""
    if os.environ.get("PYTHON"):
        return probe(os.environ["PYTHON"])
    default = probe(shutil.which("python3") or "python3")
    versions = sorted(PYTHONS, key=lambda version: default is None or version != default.version)
    found = [python for version in versions for python in pythons(version)]
    usable = [python for python in found if python.has_venv and python.has_headers]
    return next(iter(usable or found), None)


def _check_python() -> list[Missing]:
    supported = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    python = choose_python()
    if python is None or python.version not in PYTHONS:
        found = "none found" if python is None else f"{python.executable} is {python.version[0]}.{python.version[1]}"
        return [Missing(f"Python {supported} ({found})", "python3")]
    missing = []
    if not python.has_venv:
        missing.append(Missing(f"the venv module of {python.executable}", "python3-venv"))
    if not python.has_headers:
        missing.append(Missing(f"the C headers of {python.executable}, to build Horovod", "python3-dev"))
    return missing


def _check_java() -> list[Missing]:
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else "java"
    wanted = " or ".join(map(str, JAVAS))
    said = re.search(r'version "(\d+)', _output(java, "-version"))
    if said is None:
        where = f"JAVA_HOME={home} holds none" if home else "no java on PATH"
        return [Missing(f"Java {wanted} for Spark ({where})", "openjdk-17-jdk-headless")]
    if int(said.group(1)) not in JAVAS:
        hint = "set JAVA_HOME to the other after installing it"
        return [Missing(f"Java {wanted} for Spark ({java} is {said.group(1)}; {hint})", "openjdk-17-jdk-headless")]
    return []


def _check_go() -> list[Missing]:
    wanted = f"Go {GO[0]}.{GO[1]} or later, to build the S3 server of the tests"
    said = re.search(r"go(\d+)\.(\d+)", _output("go", "version"))
    if said is None:
        return [Missing(f"{wanted} (no go on PATH)", "golang-go")]
    version = (int(said.group(1)), int(said.group(2)))
    fetches = version >= GO_THAT_FETCHES and _output("go", "env", "GOTOOLCHAIN").strip() != "local"
    if version < GO and not fetches:
        found = f"go is {version[0]}.{version[1]}; backports hold newer ones"
        return [Missing(f"{wanted} ({found})", "golang-go")]
    return []


def check(tests: bool) -> list[Missing]:
    """Everything that is missing, at once."""
    missing = _check_python() + _check_java()
    for program, purpose, package in (
        ("g++", "to build Horovod", "g++"),
        ("make", "to build Horovod", "make"),
        ("patch", "to build Horovod", "patch"),
    ):
        if shutil.which(program) is None:
            missing.append(Missing(f"{program}, {purpose} (not on PATH)", package))
    return missing + (_check_go() if tests else [])


def check_hosts() -> list[Missing]:
    """What the tests that make hosts of network namespaces need; without it they are skipped."""
    missing = []
    if shutil.which("ip") is None:
        missing.append(Missing("ip, for the tests that make hosts of network namespaces (not on PATH)", "iproute2"))
    if os.geteuid() != 0:
        missing.append(Missing("root, for the tests that make hosts of network namespaces", ""))
    return missing


if __name__ == "__main__":
    hosts = check_hosts() if "--hosts" in sys.argv[1:] else []
    for name in {each.package for each in check("--tests" in sys.argv[1:]) + hosts if each.package}:
        print(name)

"""Doctor on machines that lack things, or hold broken ones: each case is made, none is imitated."""

import sys
from pathlib import Path

import pytest

from mltrain.cli import checks
from mltrain.cli.doctor import exit_code
from mltrain.collectives import HOROVOD_BUILD
from mltrain.features import packages


def _program(path: Path, says: str, exit_code: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {exit_code}\n")
    path.chmod(0o755)


def _distribution(directory: Path, name: str, version: str, *requires: str) -> None:
    """Installs a distribution's metadata, as an installer leaves it."""
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")


def _jar(kept: Path, coordinate: str) -> None:
    group, artifact, version = coordinate.split(":")
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{group}_{artifact}-{version}.jar").touch()


def _pom(home: Path, coordinate: str, packaging: str = "") -> Path:
    group, artifact, version = coordinate.split(":")
    directory = home.joinpath(".m2", "repository", *group.split("."), artifact, version)
    directory.mkdir(parents=True)
    (directory / f"{artifact}-{version}.pom").write_text(f"<project>{packaging}</project>")
    return directory


class TestJava:
    def test_none_on_the_path_is_missing_with_the_package_to_install(self, tmp_path: Path) -> None:
        (row,) = checks.java({"PATH": str(tmp_path)})
        assert (row.status, "openjdk-17-jdk-headless" in row.remedy) == ("missing", True)

    def test_a_java_home_without_java_is_broken_even_when_the_path_has_one(self, tmp_path: Path) -> None:
        _program(tmp_path / "bin" / "java", 'openjdk version "17.0.1"')
        (row,) = checks.java({"PATH": str(tmp_path / "bin"), "JAVA_HOME": str(tmp_path / "gone")})
        assert (row.name, row.status) == ("JAVA_HOME", "broken")
        assert "gone" in row.detail

    def test_another_version_is_broken_and_named(self, tmp_path: Path) -> None:
        _program(tmp_path / "java", 'openjdk version "11.0.2" 2019-01-15')
        (row,) = checks.java({"PATH": str(tmp_path)})
        assert row.status == "broken"
        assert "11.0.2" in row.detail

    def test_one_that_does_not_run_is_broken_with_what_it_said(self, tmp_path: Path) -> None:
        _program(tmp_path / "java", "cannot allocate memory", exit_code=1)
        (row,) = checks.java({"PATH": str(tmp_path)})
        assert row.status == "broken"
        assert "cannot allocate memory" in row.detail

    def test_the_java_of_java_home_is_the_one_that_counts(self, tmp_path: Path) -> None:
        _program(tmp_path / "jdk" / "bin" / "java", 'openjdk version "21.0.1"')
        _program(tmp_path / "java", 'openjdk version "11.0.2"')
        rows = checks.java({"PATH": str(tmp_path), "JAVA_HOME": str(tmp_path / "jdk")})
        assert [row.status for row in rows] == ["ok", "ok"]


class TestJars:
    def test_an_empty_cache_is_missing_and_names_every_jar(self, tmp_path: Path) -> None:
        (row,) = checks.jars(tmp_path)
        assert row.status == "missing"
        assert all(coordinate in row.detail for coordinate in packages.packages().split(","))

    def test_a_full_cache_is_ok(self, tmp_path: Path) -> None:
        for coordinate in packages.packages().split(","):
            _jar(tmp_path / ".ivy2.5.2" / "jars", coordinate)
        (row,) = checks.jars(tmp_path)
        assert row.status == "ok"

    def test_a_pom_without_its_jar_in_mavens_cache_is_broken(self, tmp_path: Path) -> None:
        directory = _pom(tmp_path, packages.DELTA)
        rows = checks.jars(tmp_path)
        assert [row.status for row in rows] == ["missing", "broken"]
        assert rows[1].remedy == f"rm -r {directory}"

    def test_so_is_one_of_a_module_that_comes_with_ours(self, tmp_path: Path) -> None:
        _pom(tmp_path, "software.amazon.awssdk:auth:2.35.4")
        assert checks.jars(tmp_path)[1].status == "broken"

    def test_a_pom_with_its_jar_and_a_parent_pom_are_as_they_should_be(self, tmp_path: Path) -> None:
        directory = _pom(tmp_path, packages.DELTA)
        (directory / f"{packages.DELTA.split(':')[1]}-{packages.DELTA.split(':')[2]}.jar").touch()
        _pom(tmp_path, "software.amazon.awssdk:aws-sdk-java-pom:2.35.4", "<packaging>pom</packaging>")
        assert [row.status for row in checks.jars(tmp_path)] == ["missing"]


class TestDistributions:
    def test_one_that_is_not_installed_is_missing_with_the_extra_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _distribution(tmp_path, "mltrain", "0.1.0", 'surely-not-installed>=1; extra == "spark"')
        monkeypatch.syspath_prepend(tmp_path)
        (row,) = checks.requirements("spark")
        assert (row.name, row.status) == ("surely-not-installed", "missing")
        assert row.remedy == "pip install 'mltrain[spark]'"

    def test_one_of_another_version_is_broken_with_both_versions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _distribution(tmp_path, "pyspark", "4.3.0")
        monkeypatch.syspath_prepend(tmp_path)
        row = next(row for row in checks.requirements("spark") if row.name == "pyspark")
        assert row.status == "broken"
        assert row.detail == "4.3.0, where mltrain needs ==4.2.0"

    def test_the_core_does_not_ask_for_engines(self) -> None:
        names = {row.name for row in checks.requirements("")}
        assert "pyarrow" in names
        assert not names & {"torch", "ray", "pyspark"}


class TestHorovod:
    def test_none_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        row = checks.horovod()
        assert row.status == "missing"
        assert "make setup" in row.remedy

    @pytest.mark.parametrize("version", ["0.28.1", "0.28.1+mltrain1"], ids=["release", "older"])
    def test_another_build_is_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
        _distribution(tmp_path, "horovod", version)
        monkeypatch.syspath_prepend(tmp_path)
        row = checks.horovod()
        assert row.status == "broken"
        assert f"{version} is not mltrain's build" in row.detail

    def test_ours_that_cannot_be_loaded_is_broken_with_the_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _distribution(tmp_path, "horovod", HOROVOD_BUILD)
        (tmp_path / "horovod").mkdir()
        (tmp_path / "horovod" / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        row = checks.horovod()
        assert row.status == "broken"
        assert "libcudart.so.13: cannot open" in row.detail

    def test_ours_by_name_without_the_patches_is_broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _distribution(tmp_path, "horovod", HOROVOD_BUILD)
        (tmp_path / "horovod").mkdir()
        (tmp_path / "horovod" / "__init__.py").touch()
        (tmp_path / "horovod" / "torch.py").touch()
        (tmp_path / "torch.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert "hvd.abort is missing" in checks.horovod().detail


def test_a_root_that_cannot_be_written_is_broken_and_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    row = checks.storage(str(tmp_path / "file" / "root"))
    assert row.status == "broken"
    assert "file" in row.detail


def test_a_root_that_can_be_written_is_ok_and_left_as_it_was(tmp_path: Path) -> None:
    assert checks.storage(str(tmp_path)).status == "ok"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_too_little_room_is_broken(tmp_path: Path) -> None:
    (row,) = checks.disk([tmp_path / "not" / "yet"], needed_bytes=1 << 60)
    assert row.status == "broken"
    assert "GiB free at" in row.detail


def test_only_what_is_broken_fails_the_command() -> None:
    ok, missing, broken = (checks.Check("x", status, "") for status in ("ok", "missing", "broken"))
    assert exit_code([ok, missing]) == 0
    assert exit_code([ok, missing, broken]) == 1

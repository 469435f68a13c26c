"""What the documents point at exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
_TARGET = re.compile(r"`make ([a-z]+)")


def _documents() -> list[Path]:
    # Not ROOT.glob("**"): it would walk through the virtual environments.
    tops = [top for top in ROOT.iterdir() if top.is_dir() and not top.name.startswith(".") and top.name != "out"]
    return sorted(
        {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(page for top in tops for page in top.rglob("README.md"))}
    )


@pytest.mark.parametrize("page", _documents(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    broken = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert broken == []


def test_every_make_target_that_is_written_about_exists() -> None:
    listed = subprocess.run(
        ["make", "-C", str(ROOT), "-qp", "help"], capture_output=True, text=True, check=False
    ).stdout
    targets = set(re.findall(r"^([a-z]+):", listed, flags=re.MULTILINE))
    named = {target for page in _documents() for target in _TARGET.findall(page.read_text())}
    assert named - targets == set()


def test_make_without_a_target_lists_them() -> None:
    said = subprocess.run(["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert {"setup", "demo", "test", "lint", "bench", "help"} <= set(re.findall(r"make ([a-z]+)", said))

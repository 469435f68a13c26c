"""What people see of a command: which lines of progress stay, and tables that fit."""

from collections.abc import Iterator

import click
import pytest

from mltrain.cli.app import command
from mltrain.cli.output import Output, table
from mltrain.progress import Passing

RUN = "adult-demo-20261123t115242-f95927"


def _said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]


def test_every_line_that_says_what_happened_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Output("text") as out:
        for number in range(5):
            out.progress(f"trial {number} pruned")
            assert _said(capsys) == [f"trial {number} pruned"]


def test_of_lines_that_pass_the_first_and_the_last_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Output("text") as out:
        for step in range(100):
            out.progress(Passing(f"step {step}"))
    said = _said(capsys)
    assert (said[0], said[-1]) == ("step 0", "step 99")
    assert len(said) < 50


def test_what_happened_is_shown_among_lines_that_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with Output("text") as out:
        steps = out.step("3/4")
        for step in range(5):
            steps(Passing(f"step {step}"))
            steps(f"trial {step} ended")
    said = _said(capsys)
    assert [line for line in said if "ended" in line] == [f"3/4 trial {step} ended" for step in range(5)]
    assert len(said) < 10


def test_a_table_breaks_no_word_and_loses_no_column_in_a_narrow_terminal() -> None:
    columns = ["run", *(f"column-{number}" for number in range(12))]
    shown = table(columns, [[RUN, *range(12)], [f"{RUN}-000", *("finished",) * 12]], "Title").text(80)
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(shown.count(f"{column} ") + shown.count(f"{column}\n") >= 1 for column in columns)
    assert shown.count("Title") == 1
    # Every block says which rows it is about.
    assert shown.count(f"{RUN}-000") == sum("─" in line for line in lines) > 1


def test_a_word_longer_than_the_terminal_stays_whole() -> None:
    place = "s3://bucket/" + "x" * 100
    assert place in table(["", "where"], [["checkpoint", place]]).text(60)


def test_numbers_stand_below_each_other() -> None:
    shown = table(["trial", "auc"], [["000", 0.91], ["001", None], ["002", 0.9234567]]).text(80).splitlines()
    assert [line.split() for line in shown[-3:]] == [["000", "0.91"], ["001"], ["002", "0.9235"]]
    assert len(shown[-3]) == len(shown[-1])


@pytest.mark.parametrize("columns", ["60", "150"])
def test_a_result_is_as_wide_as_columns_says(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with Output("text") as out:
        out.result({}, table(["a", "b"], [[RUN, "word " * 30]]))
    widest = max(map(len, capsys.readouterr().out.splitlines()))
    assert int(columns) - 10 < widest <= int(columns)


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from _commands(one, f"{path} {name}")
        else:
            yield f"{path} {name}", one


@pytest.mark.parametrize(("words", "one"), list(_commands(command, "mltrain")))
def test_every_help_page_ends_with_an_example_of_its_command(words: str, one: click.Command) -> None:
    said = one.get_help(click.Context(one))
    assert words in said[said.index("Example") :]

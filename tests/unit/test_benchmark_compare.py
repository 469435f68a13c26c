"""The comparison's own arithmetic. The comparison itself is no test: it installs other tools."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.compare.__main__ import TOOLS, parse
from benchmarks.compare.process import Epochs, cpu_s
from benchmarks.compare.report import check, summarise, table
from benchmarks.compare.rows import PART, parts, positives


def epochs(rows: int, wall_s: float, cpu_s: float, count: int = 1) -> Epochs:
    return Epochs(count, rows, rows // 2, 1, wall_s, cpu_s)


def test_ratios_are_medians_of_rounds_and_not_of_sides() -> None:
    # The machine was ten times as slow in the second round, for both.
    rounds = [
        (epochs(4_000_000, 1.0, 2.0, 4), epochs(1_000_000, 5.0, 5.0)),
        (epochs(4_000_000, 10.0, 2.0, 4), epochs(1_000_000, 50.0, 10.0)),
        (epochs(4_000_000, 2.0, 2.0, 4), epochs(1_000_000, 10.0, 5.0)),
    ]
    pair = summarise("petastorm", rounds)
    assert pair.ratio == pytest.approx(20)
    assert (pair.ours, pair.theirs) == (2_000_000, 100_000)
    assert pair.ratio_cpu == pytest.approx(10)
    assert table([pair])[1].split() == ["petastorm", "2.00", "0.100", "20.0", "2.00", "0.200", "10.0"]


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="no rounds beside litdata"):
        summarise("litdata", [])


@pytest.mark.parametrize("found", [Epochs(2, 999, 500, 9, 1, 1), Epochs(2, 2000, 501, 9, 1, 1)])
def test_an_epoch_that_lost_rows_is_no_measurement(found: Epochs) -> None:
    with pytest.raises(RuntimeError, match="wanted 2000 and 1000"):
        check("litdata", found, 1000, 500)
    check("litdata", Epochs(2, 2000, 1000, 9, 1, 1), 1000, 500)


def test_all_tools_read_the_same_rows_however_many_there_are() -> None:
    few, more = list(parts(100)), list(parts(PART + 10))
    assert [len(part.labels) for part in more] == [PART, 10]
    for name, values in few[0].columns().items():
        np.testing.assert_array_equal(values, more[0].columns()[name][:100])
    assert positives(100) == few[0].labels.sum()


def test_cpu_time_counts_children_that_have_ended() -> None:
    before = cpu_s(os.getpid())
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    assert cpu_s(os.getpid()) - before >= 0.05


def test_the_command_line_names_the_tools() -> None:
    assert parse([]).tools == list(TOOLS)
    assert parse(["--tools", "litdata", "--rows", "1000"]).tools == ["litdata"]
    with pytest.raises(SystemExit):
        parse(["--tools", "spark"])

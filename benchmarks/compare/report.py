"""What the rounds of a comparison come to."""

import dataclasses
import statistics
from collections.abc import Sequence

from benchmarks.compare.process import Epochs


@dataclasses.dataclass(frozen=True)
class Pair:
    """Ours beside one tool, in alternating rounds.

    Attributes:
        tool: its name.
        ours: rows a second of ours, the median of the rounds.
        theirs: the tool's.
        ratio: the median of the rounds' ratios, ours by theirs; each of epochs that ran one after the other.
        ours_cpu: rows a CPU second of ours.
        theirs_cpu: the tool's.
        ratio_cpu: the median of the rounds' ratios.
    """

    tool: str
    ours: float
    theirs: float
    ratio: float
    ours_cpu: float
    theirs_cpu: float
    ratio_cpu: float


def summarise(tool: str, rounds: Sequence[tuple[Epochs, Epochs]]) -> Pair:
    """Medians over rounds of (ours, theirs).

    Raises:
        ValueError: no rounds.
    """
    if not rounds:
        raise ValueError(f"no rounds beside {tool}")
    wall = [tuple(side.rows / side.wall_s for side in pair) for pair in rounds]
    cpu = [tuple(side.rows / side.cpu_s for side in pair) for pair in rounds]
    return Pair(tool, *_medians(wall), *_medians(cpu))


def check(tool: str, found: Epochs, rows: int, positives: int) -> None:
    """Refuses epochs that did not hold every row once.

    Raises:
        RuntimeError: other rows, or other labels.
    """
    wanted = (found.epochs * rows, found.epochs * positives)
    if (found.rows, found.labels) != wanted:
        raise RuntimeError(
            f"{tool}: {found.epochs} epochs had {found.rows} rows, {found.labels} of them positive; wanted "
            f"{wanted[0]} and {wanted[1]}"
        )


def table(pairs: Sequence[Pair]) -> list[str]:
    """The lines to print: M rows a second, and a CPU second."""
    lines = [f"{'M rows/s':<14}{'ours':>10}{'theirs':>10}{'ratio':>8}   {'ours, CPU':>10}{'theirs':>10}{'ratio':>8}"]
    for pair in pairs:
        wall = f"{pair.ours / 1e6:>10.2f}{pair.theirs / 1e6:>10.3f}{pair.ratio:>8.1f}"
        cpu = f"{pair.ours_cpu / 1e6:>10.2f}{pair.theirs_cpu / 1e6:>10.3f}{pair.ratio_cpu:>8.1f}"
        lines.append(f"{pair.tool:<14}{wall}   {cpu}")
    return lines


def _medians(rates: Sequence[tuple[float, ...]]) -> tuple[float, float, float]:
    ours, theirs = zip(*rates, strict=True)
    ratio = statistics.median(mine / other for mine, other in rates)
    return statistics.median(ours), statistics.median(theirs), ratio

"""What came of many cases, each with a seed of its own."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Result:
    """What a run of one kind saw.

    Attributes:
        kind: of chaos.
        seed: of the first case; the next one has the next number, so one case is repeated by its seed and a count of 1.
        counts: what was done, and how often.
        figures: what was measured.
        failures: what broke, each with the seed of its case.
    """

    kind: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def case(self, seed: int) -> Iterator[None]:
        """Notes what goes wrong in a case, and goes on."""
        try:
            yield
        except Exception:
            self.failures.append(f"repeat with: make chaos CHAOS='{self.kind} --seed {seed} --count 1'\n{_last()}")

    def text(self) -> str:
        """A table, then the failures."""
        lines = [f"{self.kind} (seed {self.seed}): {len(self.failures)} failures"]
        lines += [f"  {what:<58} {number:>7}" for what, number in sorted(self.counts.items())]
        lines += [f"  {what:<58} {value}" for what, value in self.figures.items()]
        return "\n".join([*lines, *self.failures]) + "\n"


def _last() -> str:
    return "".join(f"    {line}\n" for line in traceback.format_exc().splitlines()[-14:])

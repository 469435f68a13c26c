"""A table is refused once, with everything that is wrong with it."""

import re
from collections.abc import Iterable, Sequence

from mltrain.errors import TableError

# What a problem is about, as in `column 'x1'`, and what is wrong with it.
_SUBJECT = re.compile(r"""(\w+ (?:'(?:[^'\\]|\\.)*'|"[^"]*"))(.*)""", re.DOTALL)
_NUMBER = re.compile(r"-?\d[\d.]*(?:e[+-]?\d+)?")


def join(problems: Sequence[str]) -> str:
    """One message: the only problem, or a list of them."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:" + "".join(f"\n  - {problem}" for problem in problems)


def one_each(problems: Iterable[str]) -> list[str]:
    """Of problems that differ in nothing but the number that they show, the first: tasks find the same one apart."""
    kept: dict[tuple[str, str], str] = {}
    for problem in sorted(set(problems)):
        found = _SUBJECT.fullmatch(problem)
        subject, rest = found.groups() if found else ("", problem)
        kept.setdefault((subject, _NUMBER.sub("0", rest)), problem)
    return list(kept.values())


def repeated_keys(key: Sequence[str], count: int, examples: Sequence[str]) -> str:
    """Says that keys occur more than once: how many do, and some of them."""
    return (
        f"key {', '.join(key)}: {count} values occur more than once, among them {', '.join(examples)}; "
        "remove the duplicates, or add a column to dataset.key"
    )


def refuse(subject: str, problems: Sequence[str]) -> None:
    """Raises if there are problems.

    Raises:
        TableError: names the subject and every problem.
    """
    if problems:
        raise TableError(f"{subject}: {join(list(dict.fromkeys(problems)))}")

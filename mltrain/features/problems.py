"""A table is refused once, with everything that is wrong with it."""

from collections.abc import Sequence

from mltrain.errors import TableError


def join(problems: Sequence[str]) -> str:
    """One message: the only problem, or a list of them."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:" + "".join(f"\n  - {problem}" for problem in problems)


def refuse(subject: str, problems: Sequence[str]) -> None:
    """Raises if there are problems.

    Raises:
        TableError: names the subject and every problem.
    """
    if problems:
        raise TableError(f"{subject}: {join(list(dict.fromkeys(problems)))}")

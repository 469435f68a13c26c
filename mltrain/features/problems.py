"""A table is refused once, with everything that is wrong with it."""

from collections.abc import Sequence

from mltrain.errors import TableError


def join(problems: Sequence[str]) -> str:
    """One message: the only problem, or a list of them."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems:" + "".join(f"\n  - {problem}" for problem in problems)


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

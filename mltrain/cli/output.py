"""Where things are printed: results on stdout, progress and errors on stderr, all the rest in a log file."""

import dataclasses
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

from mltrain.progress import Passing, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from mltrain.cli.live import Screen, TrainingView

Format = Literal["text", "json"]

_LINE_EVERY_S = 1.0
_PIPED_COLUMNS = 120


class Output:
    """What a command says. Enter it around the work: progress is shown while it lasts."""

    def __init__(self, format: Format) -> None:
        self.format = format
        self._started = time.monotonic()
        self._shown_at = -math.inf
        self._latest = ""
        self._pending = False
        self._console: Console | None = None
        self._status: Status | None = None
        self._view: TrainingView | None = None
        self._screen: Screen | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is shown of progress: what is printed now is alone."""
        self._flush()
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._screen is not None:
            self._screen.stop()
        self._screen = self._view = None

    def progress(self, line: str) -> None:
        """Shows how the work goes: every line that says what happened, and of those that only pass one a second."""
        logging.getLogger("mltrain").debug(line)
        if not isinstance(self._latest, Passing):
            self._flush()
        self._latest, self._pending = line, True
        console = self._stderr()
        if self._view is not None and self._view.begun():
            self._watch(self._view)
            self._flush()
        elif console.is_terminal:
            # At the bottom, beside a spinner; it goes up among the others when the next one comes.
            from rich.markup import escape

            if self._status is None:
                self._status = console.status(escape(line))
                self._status.start()
            self._status.update(escape(line))
        elif not isinstance(line, Passing) or time.monotonic() - self._shown_at >= _LINE_EVERY_S:
            self._flush()

    def training(self, metric: str, mode: str) -> Progress:
        """`progress` of one training: on a terminal with a view of it, below the lines.

        Args:
            metric: the objective.
            mode: ``min`` or ``max``.
        """
        if not self._stderr().is_terminal or self._stderr().is_dumb_terminal:
            return self.progress
        from mltrain.cli.live import TrainingView

        self._view = TrainingView(self.progress, metric, mode)
        return self._view

    def _watch(self, view: "TrainingView") -> None:
        """Shows the view in the place of the spinner, from the first line after the training began."""
        if self._screen is not None:
            return
        if self._status is not None:
            self._status.stop()
            self._status = None
        from mltrain.cli.live import Screen

        self._screen = Screen(self._stderr(), view, stdout=sys.stdout.isatty())
        self._screen.start()

    def step(self, name: str) -> Progress:
        """`progress` with the name of a part of the work before every line."""
        return lambda line: self.progress(type(line)(f"{name} {line}"))

    def _flush(self) -> None:
        """Writes the latest line, if that has not been done, where it stays."""
        if not self._pending:
            return
        self._pending, self._shown_at = False, time.monotonic()
        line = f"[{self._shown_at - self._started:7.1f} s] {self._latest}"
        if self._status is not None or self._screen is not None:
            self._stderr().print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def _stderr(self) -> "Console":
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True)
        return self._console

    def result(self, data: Any, *text: Any) -> None:
        """Prints a result: ``data`` as JSON, or ``text``, which are strings and tables.

        A reader that leaves early (``| head``) has what it wants: the work is done all the same.
        """
        self.close()
        _print(_json(data) if self.format == "json" else _rendered(text))


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)  # noqa: T201
    except BrokenPipeError:
        # What is left in the buffer would fail once more when the interpreter flushes it at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _json(data: Any) -> str:
    return json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rendered(parts: Iterable[Any]) -> str:
    width = shutil.get_terminal_size((_PIPED_COLUMNS, 24)).columns
    return "".join(part.text(width) if isinstance(part, Table) else f"{part}\n" for part in parts)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows for a terminal. No word is broken: what does not fit goes into another block below, as pandas does it.

    Attributes:
        columns: heads.
        rows: values.
        title: above it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str | None = None

    def text(self, width: int) -> str:
        """The table in lines of ``width`` columns, or of as many as its longest words need."""
        cells = [list(self.columns), *([short(value) for value in row] for row in self.rows)]
        words = [max(map(_longest_word, column)) for column in zip(*cells, strict=True)]
        blocks = [self._block(block, cells, words, width) for block in _blocks(words, width)]
        return "\n".join(["", *([self.title] if self.title else []), *blocks])

    def _block(self, block: Sequence[int], cells: list[list[str]], words: list[int], width: int) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        columns = [[row[index] for row in cells] for index in block]
        lines = [max(len(line) for text in column for line in text.splitlines() or [""]) for column in columns]
        widths = _fitted(lines, [words[index] for index in block], width - 2 * len(block))
        made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for index, (head, *_), wide in zip(block, columns, widths, strict=True):
            values = [row[index] for row in self.rows if row[index] is not None]
            numbers = bool(values) and all(isinstance(value, int | float) for value in values)
            made.add_column(Text(head), justify="right" if numbers else "left", width=wide)
        for row in cells[1:]:
            made.add_row(*(Text(row[index]) for index in block))
        console = Console(highlight=False, width=max(width, sum(widths) + 2 * len(block)))
        with console.capture() as captured:
            console.print(made)
        shown = [line.rstrip() for line in captured.get().splitlines()]
        return "\n".join(line for line in shown if line) + "\n"


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _width(words: Sequence[int], block: Sequence[int]) -> int:
    return sum(words[index] + 2 for index in block)


def _blocks(words: Sequence[int], width: int) -> list[list[int]]:
    """Columns, by their narrowest widths, in blocks that fit; each begins with the first column."""
    blocks = [[0]]
    for index in range(1, len(words)):
        if len(blocks[-1]) > 1 and _width(words, [*blocks[-1], index]) > width:
            blocks.append([0])
        blocks[-1].append(index)
    return blocks


def _fitted(widths: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths of columns that together are no wider than ``width``, if their longest words allow: the widest give."""
    fitted = list(widths)
    while sum(least) <= width < sum(fitted):
        reducible = [index for index in range(len(fitted)) if fitted[index] > least[index]]
        fitted[max(reducible, key=lambda index: fitted[index])] -= 1
    return fitted


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """Rows for a terminal."""
    return Table(columns, list(rows), title)


def short(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    return str(value)


def plain(value: Any) -> Any:
    """Data for JSON. What is not a number there (NaN, infinity) becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return plain(value.tolist())
    return str(value)


def error(message: str, exit_code: int, format: Format) -> None:
    """Says what went wrong, in red on a terminal; with ``json`` on stdout too, where a program looks for a result."""
    red, end = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error:{end} {message}", file=sys.stderr, flush=True)  # noqa: T201
    if format == "json":
        _print(_json({"error": message, "exit_code": exit_code}))


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to what is ``sys.stderr`` now: above a view, while there is one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The present ``sys.stderr``."""
        return sys.stderr


def log_path() -> Path:
    """Where this process's log goes, beside those of the engines that it starts."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mltrain" / "logs" / f"mltrain-{os.getpid()}.log"


def configure_logging(debug: bool) -> Path:
    """Sends everything to a log file, and warnings of mltrain (with ``debug`` everything) to stderr as well."""
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, delay=True, encoding="utf-8")
    except OSError:
        # A home that cannot be written is no reason not to work.
        path = Path(tempfile.gettempdir()) / path.name
        file = logging.FileHandler(path, delay=True, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = _Terminal()
    terminal.setLevel(logging.DEBUG if debug else logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    if not debug:
        terminal.addFilter(logging.Filter("mltrain"))
    root = logging.getLogger()
    root.handlers[:] = [file, terminal]
    root.setLevel(logging.INFO)
    logging.getLogger("mltrain").setLevel(logging.DEBUG if debug else logging.INFO)
    return path

"""Where things are printed: results on stdout, progress and errors on stderr, all the rest in a log file."""

import dataclasses
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

Format = Literal["text", "json"]

_LINE_EVERY_S = 1.0
_WIDE = 240


class Output:
    """What a command says. Enter it around the work: progress is shown while it lasts."""

    def __init__(self, format: Format) -> None:
        self.format = format
        self._started = time.monotonic()
        self._shown_at = -math.inf
        self._held: str | None = None
        self._console: Console | None = None
        self._status: Status | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._held is not None:
            self._line(self._held)

    def progress(self, line: str) -> None:
        """Shows how far the work is: on a terminal the last line, else a line a second at most."""
        logging.getLogger("mltrain").debug(line)
        console = self._stderr()
        if console.is_terminal:
            from rich.markup import escape

            if self._status is None:
                self._status = console.status(escape(line))
                self._status.start()
            self._status.update(escape(line))
            return
        self._held = line
        if time.monotonic() - self._shown_at >= _LINE_EVERY_S:
            self._line(line)

    def _line(self, line: str) -> None:
        self._held, self._shown_at = None, time.monotonic()
        print(f"[{self._shown_at - self._started:7.1f} s] {line}", file=sys.stderr, flush=True)  # noqa: T201

    def _stderr(self) -> "Console":
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True)
        return self._console

    def result(self, data: Any, *text: Any) -> None:
        """Prints a result: ``data`` as JSON, or ``text``, which are strings and rich's tables.

        A reader that leaves early (``| head``) has what it wants: the work is done all the same.
        """
        self.__exit__(None, None, None)
        shown = _json(data) if self.format == "json" else _rendered(text)
        try:
            print(shown, end="", flush=True)  # noqa: T201
        except BrokenPipeError:
            # What is left in the buffer would fail once more when the interpreter flushes it at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _json(data: Any) -> str:
    return json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rendered(parts: Iterable[Any]) -> str:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as captured:
        for part in parts:
            console.print(part, markup=False)
    return captured.get()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Any:
    """Rows for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        made.add_row(*(Text(short(value), overflow="fold") for value in row))
    return made


def short(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
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


def error(message: str) -> None:
    """Says what went wrong, in red on a terminal."""
    red, end = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error:{end} {message}", file=sys.stderr, flush=True)  # noqa: T201


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
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.DEBUG if debug else logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    if not debug:
        terminal.addFilter(logging.Filter("mltrain"))
    root = logging.getLogger()
    root.handlers[:] = [file, terminal]
    root.setLevel(logging.INFO)
    logging.getLogger("mltrain").setLevel(logging.DEBUG if debug else logging.INFO)
    return path

"""What every command takes, and what happens to every command when it is interrupted."""

import functools
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from mltrain.cli.output import Output
from mltrain.errors import RequestError, StoppedError

if TYPE_CHECKING:
    from mltrain.config import DatasetFile, Experiment

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

Command = Callable[..., int | None]


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def example(*commands: str) -> str:
    """Commands to copy, for the end of a help page."""
    return "\n".join(["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {one}" for one in commands)])


def common(function: Command) -> Command:
    """Adds ``--output`` and ``--debug``; the function gets an entered `Output` as its first argument."""

    @click.option(
        "--output",
        "format",
        type=click.Choice(["text", "json"]),
        default="text",
        help="What stdout gets: tables for people, or one JSON document with everything, for programs.",
    )
    @click.option("--debug", is_flag=True, show_default=False, help="Show tracebacks and everything that is logged.")
    @functools.wraps(function)
    def command(*arguments: Any, format: Any, debug: bool, **options: Any) -> int | None:
        with Output(format) as out:
            try:
                return function(out, *arguments, **options)
            except StoppedError as stopped:
                return _stopped(out, str(stopped), stopped.resume_command)

    return command


def resumable(function: Command) -> Command:
    """For commands that a signal stops in a way that can be resumed: also before they have begun."""

    @functools.wraps(function)
    def command(out: Output, *arguments: Any, **options: Any) -> int | None:
        try:
            return function(out, *arguments, **options)
        except KeyboardInterrupt:
            return _stopped(out, "Stopped before the first step.", shlex.join(["mltrain", *sys.argv[1:]]))

    return command


def _stopped(out: Output, message: str, resume_command: str) -> int:
    out.close()
    click.echo(message, err=True)
    out.result({"status": "stopped", "resume_command": resume_command}, f"to go on: {resume_command}")
    return StoppedError.exit_code


def terminate(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM like Ctrl-C: what was opened is closed."""
    raise Terminated


def config_options(function: Command) -> Command:
    """Adds ``-c`` and ``-s``, both as they were given: ``config`` and ``overrides``."""
    file = click.option("-c", "--config", type=click.Path(), metavar="FILE", help="A dataset or an experiment file.")
    override = click.option(
        "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, as in train.epochs=3."
    )
    return file(override(function))


def needed(config: str | None) -> str:
    """``-c``, for a command that cannot do without.

    Raises:
        RequestError: it was not given.
    """
    if config is None:
        raise RequestError("no config file: name one with -c FILE")
    return config


def root_of(config: str | None, overrides: Sequence[str], root: str | None) -> str:
    """Where a command looks: ``--root``, else the root of the config file, else ./out.

    Raises:
        RequestError: both were given, or an override without a file.
    """
    if config is not None and root is not None:
        raise RequestError("--root and -c both name a root; give one of them")
    if config is not None:
        return load(config, overrides).root
    if overrides:
        raise RequestError(f"-s {overrides[0]}: there is no config file to override; name one with -c FILE")
    return root or "./out"


def load(config: str, overrides: Sequence[str]) -> "DatasetFile | Experiment":
    """The config file with its overrides."""
    from mltrain import config as configs

    return configs.load(config, overrides)

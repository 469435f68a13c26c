"""The command line: groups and commands, and how whatever happens becomes an exit code.

0 done; 1 the work failed, or what was checked is damaged; 2 the request was wrong; 75 stopped, and the printed command
goes on. A command that cannot be resumed ends with 130 after SIGINT and 143 after SIGTERM, as shells have it.
"""

import logging
import signal
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click

import mltrain
from mltrain.cli import output
from mltrain.cli.config import config
from mltrain.cli.dataset import dataset
from mltrain.cli.machine import demo, doctor, jobs
from mltrain.cli.options import INTERRUPTED, TERMINATED, Terminated, example, terminate
from mltrain.cli.runs import runs
from mltrain.cli.train import train
from mltrain.cli.tune import tune
from mltrain.errors import MissingDependencyError, MltrainError, RequestError

# Which extra brings a module that is not there.
_EXTRAS = {
    "pyspark": "spark",
    "delta": "spark",
    "py4j": "spark",
    "torch": "torch",
    "torchmetrics": "torch",
    "safetensors": "torch",
    "tensorboard": "torch",
    "ray": "ray",
    "cloudpickle": "ray",
    "matplotlib": "notebook",
    "pandas": "notebook",
}

_PAGES = frozenset({"-h", "--help", "--version"})


@click.group(
    epilog=example("mltrain demo"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True},
)
@click.version_option(mltrain.__version__, prog_name="mltrain")
def command() -> None:
    """From a Delta Lake table to a trained, evaluated, recorded model on preemptible GPU nodes.

    Results go to stdout, progress and errors to stderr. Exit codes: 0 done; 1 the work failed, or what was checked is
    damaged; 2 the request was wrong; 75 stopped, and the command that is printed goes on.
    """


for each in (demo, doctor, config, dataset, train, tune, runs, jobs):
    command.add_command(each)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line and answers its exit code."""
    debug, format = "--debug" in arguments, _format(arguments)
    log = output.configure_logging(debug)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return command.main(list(arguments), prog_name="mltrain", standalone_mode=False) or 0
    except click.ClickException as error:
        hint = f"\n{error.ctx.get_usage()}" if isinstance(error, click.UsageError) and error.ctx else ""
        output.error(f"{error.format_message()}{hint}", RequestError.exit_code, format)
        return RequestError.exit_code
    except click.Abort as abort:
        return TERMINATED if isinstance(abort.__cause__, Terminated) else INTERRUPTED
    except SystemExit:
        # So click ends on any broken pipe, without a word. The reader of a page of help has what it wants.
        if _PAGES & set(arguments):
            return 0
        output.error("the other end of a pipe or connection was closed", 1, format)
        return 1
    except Exception as error:
        return _failed(error, log, debug, format)
    finally:
        signal.signal(signal.SIGTERM, before)


def _format(arguments: Sequence[str]) -> output.Format:
    """What ``--output`` says, of a command line that may be wrong."""
    return "json" if "--output=json" in arguments or ("--output", "json") in pairwise(arguments) else "text"


def _failed(error: Exception, log: Path, debug: bool, format: output.Format) -> int:
    # Not before the traceback is in the log: the message below says that it is.
    logging.getLogger(__name__).log(logging.DEBUG if debug else logging.INFO, "failed", exc_info=error)
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True)
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get((error.name or "").partition(".")[0])):
        missing = f"{error.name} is not installed: pip install 'mltrain[{extra}]'"
        output.error(missing, MissingDependencyError.exit_code, format)
        return MissingDependencyError.exit_code
    if isinstance(error, MltrainError):
        output.error(str(error), error.exit_code, format)
        return error.exit_code
    output.error(
        f"{type(error).__name__}: {error}\nThis is a mistake in mltrain, or in code that it was given; "
        f"--debug shows where, and {log} has it too",
        1,
        format,
    )
    return 1

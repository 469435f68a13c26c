"""``python -m benchmarks.compare [--rows N] [--tools ...]``: see the package."""

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import benchmarks.compare as package
from benchmarks.compare.environments import interpreter
from benchmarks.compare.process import Epochs, Side, answer, end, start
from benchmarks.compare.report import Pair, check, summarise, table
from benchmarks.compare.rows import ROW_BYTES, SHUFFLE_BUFFER, positives
from cluster.setup import cache

OURS = "ours"
TOOLS = ("ray_data", "ray_memory", "petastorm", "litdata", "streaming")
# A measurement of ours lasts at least so long: several epochs in a row, where one is short.
_LEAST_S = 1.0
_SETTLE_S = 3.0


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="TOOL", help=", ".join(TOOLS))
    parser.add_argument("--data", type=Path, help="where prepared rows are kept; a temporary directory by default")
    parser.add_argument("--environments", type=Path, default=cache.directory() / "compare", help="%(default)s")
    return parser.parse_args(words)


def main() -> None:
    """Prepares, compares and prints."""
    args = parse()
    with _folder(args.data) as data:
        print(f"{args.rows} rows of {ROW_BYTES} bytes, batch {args.batch}; medians of {args.rounds} rounds", end="; ")
        print(f"shuffle buffers of {SHUFFLE_BUFFER} rows")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
        folders = {tool: prepared(tool, args, data) for tool in (OURS, *args.tools)}
        expected = positives(args.rows)
        pairs = []
        for tool in args.tools:
            pairs.append(compare(tool, args, folders, expected))
            print("\n".join(table(pairs[-1:])), flush=True)
        print("\nall, ours by theirs:", *table(pairs), sep="\n")


def prepared(tool: str, args: argparse.Namespace, data: Path) -> Path:
    """The rows in a tool's own format, written unless they are there."""
    folder, stamp = data / f"{tool}-{args.rows}", data / f"{tool}-{args.rows}.json"
    if not stamp.exists():
        process = start(tool, interpreter(tool, args.environments), "prepare", folder, args.rows, args.batch)
        try:
            seconds = answer(process, tool)["seconds"]
        finally:
            end(process)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        stamp.write_text(json.dumps({"seconds": seconds, "size_bytes": size}))
    found = json.loads(stamp.read_text())
    print(f"{tool:<14}{found['size_bytes'] / 1e6:>10.0f} MB, prepared in {found['seconds']:.0f} s", flush=True)
    return folder


def compare(tool: str, args: argparse.Namespace, folders: dict[str, Path], expected: int) -> Pair:
    """Ours and one tool by turns, in two processes, after an epoch each that does not count."""
    with (
        Side(OURS, interpreter(OURS, args.environments), folders[OURS], args.rows, args.batch) as ours,
        Side(tool, interpreter(tool, args.environments), folders[tool], args.rows, args.batch) as theirs,
    ):
        for side in (ours, theirs):
            print(f"\n{side.tool}: {side.versions} {side.settings or ''}")
        for side in (theirs, ours):
            check(side.tool, side.read(), args.rows, expected)
        repeats = _repeats(ours)
        rounds = []
        for number in range(args.rounds):
            started = time.strftime("%H:%M:%S")
            pair = _settled(ours, repeats), _settled(theirs, 1)
            for side, found in zip((ours, theirs), pair, strict=True):
                check(side.tool, found, args.rows, expected)
            rounds.append(pair)
            shown = ", ".join(f"{p.rows / p.wall_s / 1e6:.3f} ({p.rows / p.cpu_s / 1e6:.3f} by CPU)" for p in pair)
            print(f"  round {number + 1}, {started}, load {os.getloadavg()[0]:.1f}: {shown} M rows/s", flush=True)
        return summarise(tool, rounds)


def _settled(side: Side, epochs: int) -> Epochs:
    """What a side does once the other one's processes have had time to come to rest."""
    time.sleep(_SETTLE_S)
    return side.read(epochs)


def _repeats(ours: Side) -> int:
    return max(1, round(_LEAST_S / ours.read().wall_s))


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
    else:
        with tempfile.TemporaryDirectory(prefix="mltrain-comparison-") as folder:
            yield Path(folder)


if __name__ == "__main__":
    main()

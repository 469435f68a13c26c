"""Faults of a dataset build, for processes that have this directory on PYTHONPATH: the product knows nothing of them.

MLTRAIN_TEST_FAULTS names a file that says which fault is on; it is read when the point of a fault is reached, so a test
can change it between builds.

fail_first_attempts   every task fails once, before or after its shard is stored, by an exception or by dying
lose_row              each shard lacks its last row
swap_row              each shard has its first row twice and lacks its last: the count is right
kill_driver           the driver dies with everything stored but the manifest
wait_for_other        the driver waits before the manifest until two drivers have come so far, and tasks fail once
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any


def _is_on(fault: str) -> bool:
    return Path(os.environ["MLTRAIN_TEST_FAULTS"]).read_text().strip() == fault


def _install_in_tasks() -> None:
    import pyarrow as pa
    from pyspark import TaskContext

    from mltrain.features import scatter

    encode, store_shard = scatter.Encoder.encode, scatter.Encoder.store_shard

    def faulty_encode(self: scatter.Encoder, rows: pa.Table) -> Any:
        last = rows.num_rows - 1
        if _is_on("lose_row"):
            rows = rows.slice(0, last)
        if _is_on("swap_row"):
            rows = rows.take(pa.array([0, *range(last)]))
        return encode(self, rows)

    def faulty_store(self: scatter.Encoder, shard: Any) -> None:
        task = TaskContext.get()
        first = (
            (_is_on("fail_first_attempts") or _is_on("wait_for_other"))
            and task is not None
            and task.attemptNumber() == 0
        )
        late, hard = int(shard.blob[0], 16) % 2, int(shard.blob[1], 16) % 2
        if not first or late:
            store_shard(self, shard)
        if first and hard:
            os._exit(1)
        if first:
            raise RuntimeError("injected failure")

    scatter.Encoder.encode = faulty_encode  # type: ignore[method-assign]
    scatter.Encoder.store_shard = faulty_store  # type: ignore[method-assign]


def _meet(place: Path) -> None:
    """Waits for one other process that comes here: a pipe opens when both of its ends are held."""
    try:
        os.mkfifo(place)
        end = os.O_RDONLY
    except FileExistsError:
        end = os.O_WRONLY
    os.close(os.open(place, end))


def _install_in_driver() -> None:
    from mltrain.data import Build

    publish = Build.publish

    def faulty_publish(build: Build, *args: Any) -> Any:
        if _is_on("kill_driver"):
            os.kill(os.getpid(), signal.SIGKILL)
        if _is_on("wait_for_other"):
            _meet(Path(os.environ["MLTRAIN_TEST_FAULTS"]).with_name("meeting"))
        return publish(build, *args)

    Build.publish = faulty_publish  # type: ignore[assignment, method-assign]


if "MLTRAIN_TEST_FAULTS" in os.environ:
    if "pyspark.daemon" in sys.orig_argv:
        _install_in_tasks()
    if "tests.support.build_dataset" in sys.orig_argv:
        _install_in_driver()

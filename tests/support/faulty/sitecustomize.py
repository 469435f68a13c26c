"""Faults of a dataset build, for processes that have this directory on PYTHONPATH: the product knows nothing of them.

MLTRAIN_TEST_FAULTS names a file that says which fault is on; it is read when the point of a fault is reached, so a test
can change it between builds.

fail_first_attempts   every task fails once, before or after its shard is stored, by an exception or by dying
lose_row              each shard lacks its last row
swap_row              each shard has its first row twice and lacks its last: the count is right
kill_driver           the driver dies with everything stored but the manifest
wait_for_other        the driver waits before the manifest until two drivers have come so far, and tasks fail once
storm                 in roots named case-SEED, what SEED says: most attempts of tasks are killed, fail or dawdle, some
                      drivers are killed; each fault is a line in the file ``met`` beside the file that names the fault
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def _is_on(fault: str) -> bool:
    return Path(os.environ["MLTRAIN_TEST_FAULTS"]).read_text().strip() == fault


def _note(what: str) -> None:
    with Path(os.environ["MLTRAIN_TEST_FAULTS"]).with_name("met").open("a") as met:
        met.write(f"{what}\n")


def _kill_myself(after_s: float = 0.0) -> None:
    time.sleep(after_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _storm_in_task(seed: str, blob: str, attempt: int) -> str:
    """What happens to an attempt."""
    rng = random.Random(f"{seed} {blob} {attempt}")
    if attempt > 2 or rng.random() < 0.2:
        return ""
    whens = ("before its upload", "during its upload", "after its upload")
    return rng.choice([*(f"killed {when}" for when in whens), "failed after its upload", "dawdled"])


def _store_in_a_storm(store: Any, seed: str, blob: str, attempt: int) -> None:
    fault = _storm_in_task(seed, blob, attempt)
    if fault:
        _note(f"case-{seed} task {fault}")
    if fault == "killed before its upload":
        _kill_myself()
    if fault == "killed during its upload":
        after_s = random.Random(f"{seed} {blob}").uniform(0.0, 0.01)
        threading.Thread(target=_kill_myself, args=(after_s,)).start()
    if fault == "dawdled":
        time.sleep(2.0)  # so that speculation starts another attempt beside it
    store()
    if fault == "killed after its upload":
        _kill_myself()
    if fault == "failed after its upload":
        raise RuntimeError("injected failure")


def _storm_case(uri: str) -> str | None:
    name = uri.rstrip("/").rpartition("/")[2]
    return name.removeprefix("case-") if name.startswith("case-") and _is_on("storm") else None


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
        case = _storm_case(self.store.uri)
        if case is not None and task is not None:
            _store_in_a_storm(lambda: store_shard(self, shard), case, shard.blob, task.attemptNumber())
            return
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


def _kill_driver_in_a_storm(uri: str, when: str) -> None:
    case = _storm_case(uri)
    rng = random.Random(f"{case} driver")
    if case is None or rng.random() > 0.35 or rng.choice(["before", "after"]) != when:
        return
    met = Path(os.environ["MLTRAIN_TEST_FAULTS"]).with_name("met")
    fault = f"case-{case} driver killed {when} its manifest"
    if not met.exists() or fault not in met.read_text().splitlines():
        _note(fault)
        _kill_myself()


def _install_in_driver() -> None:
    from mltrain.data import Build
    from mltrain.data import publish as publishing

    publish, put_manifest = Build.publish, publishing._put_manifest

    def faulty_put_manifest(root: Any, manifest: Any) -> Any:
        _kill_driver_in_a_storm(root.uri, "before")
        stored = put_manifest(root, manifest)
        _kill_driver_in_a_storm(root.uri, "after")
        return stored

    publishing._put_manifest = faulty_put_manifest

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

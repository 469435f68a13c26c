"""Builds by Spark whose tasks and drivers are killed, doubled and badly served.

Two drivers work at once, side by side on the first roots; tasks are killed by SIGKILL before, during and after their
upload, fail, or dawdle until speculation doubles them; some drivers are killed around their manifest; half of the roots
are behind a proxy that answers badly. ``count`` counts faults; a case is a root, and its seed says what happens there.
"""

import json
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mltrain.data import Dataset
from tests.chaos.result import Result
from tests.support import faults_http, processes, s3, tables
from tests.support.faults_http import Fault, FaultyProxy

ROWS = 900
_FAULTS_A_BUILD = 30
_TOGETHER = 4
_TIMEOUT_S = 1800.0
_REQUEST_FAULTS = (Fault.UNAVAILABLE, Fault.CUT_BEFORE, Fault.LOSE_ANSWER, Fault.CUT_BODY, Fault.SHORT_BODY)
_BAD_REQUESTS = 0.05
_SUBMIT = {
    "spark.speculation": "true",
    "spark.speculation.interval": "50ms",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.quantile": "0.3",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "1g",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}


def rows() -> pa.Table:
    """Every row has copies of its values that a dataset keeps as they are."""
    rng = np.random.default_rng(5)
    ids = np.arange(ROWS)
    x, c = rng.normal(3, 9, ROWS), [None if i % 11 == 0 else f"c{i % 40}" for i in ids]
    h = pa.array([[int(v) for v in rng.integers(0, 30, i % 5)] for i in ids], pa.list_(pa.int64()))
    key = [f"key-{i:05d}" for i in ids]
    return pa.table({"id": key, "x": x, "c": c, "h": h, "y": ids % 2, "kept_x": x, "kept_c": c})


def run(count: int, seed: int, folder: Path) -> Result:
    """As many builds as give about ``count`` faults."""
    result = Result("spark", seed)
    cases = range(seed, seed + max(1, round(count / _FAULTS_A_BUILD)))
    with s3.serve(folder / "s3") as server, faults_http.before(server.endpoint) as proxy:
        _Storm(folder, server, proxy, result).run(cases)
        for fault, number in proxy.met.items():
            result.counts[f"storage: {fault.name.lower().replace('_', ' ')}"] = number
    met = sum(number for what, number in result.counts.items() if what.startswith(("task", "driver", "storage")))
    result.figures["faults met"] = f"{met} in {len(cases)} roots"
    return result


class _Storm:
    def __init__(self, folder: Path, server: s3.S3Server, proxy: FaultyProxy, result: Result) -> None:
        self.folder, self.server, self.proxy, self.result = folder, server, proxy, result
        self.bucket = server.bucket()
        self.table = tables.write(folder / "table", rows())
        self.faults = folder / "faults"
        self.environment = {
            **server.env,
            **tables.python_with_faults(self.faults, fault="storm"),
            "AWS_ENDPOINT_URL": proxy.endpoint,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(folder / "spark"),
        }

    def run(self, cases: Sequence[int]) -> None:
        """Builds with faults, the same roots again without, and looks at all that can be seen."""
        self.digest = self._build([self._file("reference")])[0]["digest"]
        self.reference = Dataset.open("test", root=self.folder / "reference")
        rng = random.Random(cases[0])
        self.proxy.before_request = lambda method, path: self._perhaps_fail(rng, method, path)
        together, apart = cases[:_TOGETHER], cases[_TOGETHER:]
        self.result.counts["roots with two builders"] = len(together)
        lists = [[*together, *apart[0::2]], [*together, *apart[1::2]]]
        waiting = [[self._file(f"case-{case}") for case in mine] for mine in lists]
        for _ in range(len(cases) + 2):
            # Whoever was killed comes again, and goes on where it was.
            waiting = [files for files in waiting if files]
            if not waiting:
                break
            said = self._run_all(waiting)
            waiting = [files[len(answers) :] for files, answers in zip(waiting, said, strict=True)]
            for answer in (answer for answers in said for answer in answers):
                assert answer.get("digest") == self.digest, f"{answer}; wanted {self.digest}"
        assert not waiting, "builds never ended"
        self.proxy.before_request = lambda method, path: None
        self._count_tasks()
        (self.faults / "fault").write_text("none")
        again = [self._file(f"case-{case}", again=True) for case in cases[::2]]
        for answer in self._build(again):
            assert answer["digest"] == self.digest, f"undisturbed: {answer}"
        self.result.counts["undisturbed builds afterwards, reference digest"] = len(again)
        for case in cases:
            with self.result.case(case):
                self._check(self._files_of(case))

    def _perhaps_fail(self, rng: random.Random, method: str, path: str) -> None:
        if rng.random() < _BAD_REQUESTS:
            self.proxy.fail(rng.choice(_REQUEST_FAULTS), method=method, part_of_path=path.partition("?")[0])

    def _is_remote(self, case: int) -> bool:
        return case % 2 == 1

    def _files_of(self, case: int) -> Path:
        name = f"case-{case}"
        return self.server.local(f"{self.bucket}/{name}") if self._is_remote(case) else self.folder / name

    def _file(self, name: str, *, again: bool = False) -> Path:
        """A dataset file; another order of its features makes another build of the same dataset."""
        remote = name != "reference" and self._is_remote(int(name.removeprefix("case-")))
        root = f"{self.bucket}/{name}" if remote else str(self.folder / name)
        features: dict[str, Any] = {"*": {}, "h": {"type": "id_list"}}
        if again:
            features = {"x": {}, **features}
        keep = ["kept_x", "kept_c"]
        file = tables.dataset_file(self.table, root, keep=keep, features=features, rows_per_shard=80)
        path = self.folder / f"{name}-{again}.json"
        path.write_text(file.model_dump_json())
        return path

    def _build(self, files: list[Path]) -> list[dict[str, Any]]:
        return self._run_all([files])[0]

    def _run_all(self, lists: list[list[Path]]) -> list[list[dict[str, Any]]]:
        """Builds each list in a process of its own, at once; what they said until they ended or were killed."""
        conf = " ".join(f"--conf {name}={value}" for name, value in _SUBMIT.items())
        environment = {**self.environment, "PYSPARK_SUBMIT_ARGS": f"--master local[3,12] {conf} pyspark-shell"}
        command = [sys.executable, "-m", "tests.support.build_dataset"]
        with ExitStack() as stack:
            running = [
                stack.enter_context(
                    processes.started([*command, *files], self.folder / f"logs-{number}", env=environment)
                )
                for number, files in enumerate(lists)
            ]
            ended = [process.wait(_TIMEOUT_S) for process in running]
        for one in ended:
            assert one.exit_code in (0, -9), one.stderr[-4000:]
        return [[json.loads(line) for line in one.stdout.splitlines()] for one in ended]

    def _count_tasks(self) -> None:
        for line in (self.faults / "met").read_text().splitlines():
            self.result.counts[line.partition(" ")[2]] += 1

    def _check(self, root: Path) -> None:
        """The one dataset that can be seen is whole, and right to the row."""
        manifests = list(root.glob("shards/*/manifest.json"))
        assert [path.parent.name for path in manifests] == [self.digest], manifests
        seen = Dataset.open("test", root=root)
        report = seen.verify()
        assert report.ok, report.damaged
        found = pa.concat_tables([seen.read(split) for split in seen.splits]).sort_by("id")
        wanted = pa.concat_tables([self.reference.read(split) for split in seen.splits]).sort_by("id")
        assert found.equals(wanted), "other features than in the reference"
        source = rows().select(["id", "kept_x", "kept_c"])
        assert found.select(["id", "kept_x", "kept_c"]).equals(source), "other rows than in the table"
        self.result.counts["datasets compared with the table, row by row"] += 1

"""Builds by Spark whose tasks and drivers are killed, doubled and badly served.

Two drivers work at once, side by side on the first roots; tasks are killed by SIGKILL before, during and after their
upload, fail, or dawdle until speculation doubles them; some drivers are killed around their manifest; half of the roots
are behind a proxy that answers badly. Every other pair of roots has a dataset already, of an earlier version of the
table, and grows. ``count`` counts faults; a case is a root, and its seed says what happens there.
"""

import json
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa

from mltrain.data import Dataset
from mltrain.storage import open_store
from tests.chaos.result import Result
from tests.support import faults_http, processes, s3, tables
from tests.support.faults_http import Fault, FaultyProxy

ROWS, PART, APPENDED = 900, 150, 100
_DELETED, _UPDATED = range(20, 60), range(200, 230)
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
    """Every row has copies of its values that a dataset keeps as they are; the last ones come later."""
    rng, count = np.random.default_rng(5), ROWS + APPENDED
    ids = np.arange(count)
    x, c = rng.normal(3, 9, count), [None if i % 11 == 0 else f"c{i % 40}" for i in ids]
    h = pa.array([[int(v) for v in rng.integers(0, 30, i % 5)] for i in ids], pa.list_(pa.int64()))
    return pa.table(
        {"id": [_key(i) for i in range(count)], "x": x, "c": c, "h": h, "y": ids % 2, "kept_x": x, "kept_c": c}
    )


def rows_later() -> pa.Table:
    """What the table holds in the end."""
    table = rows()
    ids = np.arange(len(table))
    values = table["x"].to_numpy() + 100.0 * np.isin(ids, _UPDATED)
    for name in ("x", "kept_x"):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table.filter(pa.array(~np.isin(ids, _DELETED)))


def write_versions(path: Path) -> tuple[str, int, int]:
    """The table, the version that is first built, and the one that datasets grow to."""
    table = rows()
    uri = tables.write(path, *(table.slice(start, PART) for start in range(0, ROWS, PART)))
    first = deltalake.DeltaTable(uri).version()
    tables.write(path, table.slice(ROWS))
    later = deltalake.DeltaTable(uri)
    later.delete(_between(_DELETED))
    later.update(updates={"x": "x + 100", "kept_x": "kept_x + 100"}, predicate=_between(_UPDATED))
    return uri, first, later.version()


def _key(number: int) -> str:
    return f"key-{number:05d}"


def _between(numbers: range) -> str:
    return f"id >= '{_key(numbers.start)}' AND id < '{_key(numbers.stop)}'"


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
        self.table, *self.versions = write_versions(folder / "table")
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
        undisturbed = [self._file("reference"), self._file("grown"), self._file("grown", base="test")]
        fresh, same, grown = (answer["digest"] for answer in self._build(undisturbed))
        assert fresh == same != grown
        self.digests = {False: fresh, True: grown}
        self.references = {
            False: Dataset.open("test", root=self.folder / "reference"),
            True: Dataset.open("test", root=self.folder / "grown"),
        }
        for case in filter(self._grows, cases):
            self._copy_base(case)
        rng = random.Random(cases[0])
        self.proxy.before_request = lambda method, path: self._perhaps_fail(rng, method, path)
        together, apart = cases[:_TOGETHER], cases[_TOGETHER:]
        self.result.counts["roots with two builders"] = len(together)
        self.result.counts["roots that grow"] = sum(map(self._grows, cases))
        lists = [[*together, *apart[0::2]], [*together, *apart[1::2]]]
        waiting = [[self._file(f"case-{case}") for case in mine] for mine in lists]
        for _ in range(len(cases) + 2):
            # Whoever was killed comes again, and goes on where it was.
            waiting = [files for files in waiting if files]
            if not waiting:
                break
            said = self._run_all(waiting)
            for files, answers in zip(waiting, said, strict=True):
                self._agree(files, answers)
            waiting = [files[len(answers) :] for files, answers in zip(waiting, said, strict=True)]
        assert not waiting, "builds never ended"
        self.proxy.before_request = lambda method, path: None
        self._count_tasks()
        (self.faults / "fault").write_text("none")
        again = [self._file(f"case-{case}", again=True) for case in cases[::2]]
        self._agree(again, self._build(again))
        self.result.counts["undisturbed builds afterwards, reference digest"] = len(again)
        for case in cases:
            with self.result.case(case):
                self._check(self._files_of(case), self._grows(case))

    def _grows(self, case: int) -> bool:
        return case % 4 >= 2

    def _copy_base(self, case: int) -> None:
        """Puts the dataset of the first version into a root."""
        base = open_store(str(self.folder / "reference"))
        with s3.environment(self.server):
            store = open_store(self._root(f"case-{case}"))
            for meta in base.list(""):
                store.put(meta.path, base.get(meta.path))

    def _agree(self, files: Sequence[Path], answers: Sequence[dict[str, Any]]) -> None:
        """What builds said is what undisturbed ones say; the last may have been killed."""
        for file, answer in zip(files, answers, strict=False):
            wanted = self.digests[self._grows(int(file.stem.split("-")[1]))]
            assert answer.get("digest") == wanted, f"{file.stem}: {answer}; wanted {wanted}"

    def _perhaps_fail(self, rng: random.Random, method: str, path: str) -> None:
        if rng.random() < _BAD_REQUESTS:
            self.proxy.fail(rng.choice(_REQUEST_FAULTS), method=method, part_of_path=path.partition("?")[0])

    def _is_remote(self, case: int) -> bool:
        return case % 2 == 1

    def _files_of(self, case: int) -> Path:
        name = f"case-{case}"
        return self.server.local(f"{self.bucket}/{name}") if self._is_remote(case) else self.folder / name

    def _root(self, name: str) -> str:
        remote = name.startswith("case-") and self._is_remote(int(name.removeprefix("case-")))
        return f"{self.bucket}/{name}" if remote else str(self.folder / name)

    def _file(self, name: str, *, base: str | None = None, again: bool = False) -> Path:
        """A dataset file; another order of its features makes another build of the same dataset."""
        features: dict[str, Any] = {"*": {}, "h": {"type": "id_list"}}
        if again:
            features = {"x": {}, **features}
        if name.startswith("case-") and self._grows(int(name.removeprefix("case-"))):
            # By its digest the base is the same, whatever the name points at meanwhile.
            base = self.digests[False] if again else "test"
        growth = {"base": base, "version": self.versions[1]} if base else {"version": self.versions[0]}
        keep = ["kept_x", "kept_c"]
        file = tables.dataset_file(
            self.table, self._root(name), keep=keep, features=features, rows_per_shard=80, **growth
        )
        path = self.folder / f"{name}-{base is not None}-{again}.json"
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
            case, _, what = line.partition(" ")
            self.result.counts[what] += 1
            self.result.counts["of these where a dataset grows"] += self._grows(int(case.removeprefix("case-")))

    def _check(self, root: Path, grows: bool) -> None:
        """The datasets that can be seen are whole and no others, and the last one is right to the row."""
        seen = Dataset.open("test", root=root)
        assert seen.digest == self.digests[grows]
        manifests = {path.parent.name for path in root.glob("shards/*/manifest.json")}
        assert manifests == {self.digests[False], seen.digest}, manifests
        for digest in manifests:
            report = Dataset.open(digest, root=root).verify()
            assert report.ok, report.damaged
        reference = self.references[grows]
        found = pa.concat_tables([seen.read(split) for split in seen.splits]).sort_by("id")
        wanted = pa.concat_tables([reference.read(split) for split in seen.splits]).sort_by("id")
        assert found.equals(wanted), "other features than in the reference"
        kept = ["id", "kept_x", "kept_c"]
        source = (rows_later() if grows else rows().slice(0, ROWS)).select(kept)
        assert found.select(kept).equals(source), "other rows than in the table"
        self.result.counts[f"{'grown ' if grows else ''}datasets compared with the table, row by row"] += 1

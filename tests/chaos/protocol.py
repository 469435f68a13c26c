"""What builders do without Spark: tasks store shards, a driver publishes; killed, doubled and badly served.

Here this process plays Spark: it starts an attempt of each task, and another one where an attempt was lost. A case is
one root: drivers and tasks meet faults until a dataset is published; whatever can be seen after each of them is checked
row by row; then an undisturbed build follows. In a third of the roots there is a dataset already, and it grows: rows
of some of its shards are changed and deleted, others are added. ``count`` counts faults that were met, not cases.
"""

import functools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mltrain.data import Build, Column, Dataset, Schema, ShardEntry, assemble, write_shard
from mltrain.data.manifest import Manifest, manifest_path
from mltrain.data.publish import put_shard, read_manifest
from mltrain.data.shard import EncodedShard, blob_path, open_shard
from mltrain.errors import MltrainError
from mltrain.features.compare import Growth
from mltrain.features.growth import untouched
from mltrain.features.scatter import Places
from mltrain.storage import Store, open_store
from tests.chaos import warm
from tests.chaos.result import Result
from tests.support import faults_http, s3
from tests.support.faults_http import Fault

SCHEMA = Schema(
    (
        Column("id", "key", "carried", "int64"),
        Column("x", "feature", "numeric", "float32"),
        Column("y", "label", "regression", "float32", type="regression"),
        Column("note", "keep", "carried", "string"),
    ),
    ("id",),
)
SPLITS = ("train", "validation")
SHARDS, NEW_SHARDS = {"train": 6, "validation": 2}, {"train": 2, "validation": 1}
ROWS, ADDED = 4000, 300
TOUCHED = (1, 2, 6)
"""Shards with rows that change or are gone."""
_PATIENT_S, _HASTY_S = 20.0, 1.0
_UNKILLED = (Fault.UNAVAILABLE, Fault.CUT_BEFORE, Fault.LOSE_ANSWER, Fault.CUT_BODY, Fault.SHORT_BODY, Fault.CUT_UPLOAD)
_SAID = {
    Fault.UNAVAILABLE: "answered 503",
    Fault.CUT_BEFORE: "cut the connection",
    Fault.LOSE_ANSWER: "carried it out, lost the answer",
    Fault.CUT_BODY: "cut the body short",
    Fault.SHORT_BODY: "cut the body short and did not say so",
    Fault.CUT_UPLOAD: "took half of the upload",
    Fault.HANG: "timed out",
}
_MOMENTS = {"before": Fault.CUT_BEFORE, "during": Fault.CUT_UPLOAD, "after": Fault.LOSE_ANSWER}


def table() -> pa.Table:
    """All rows of the first version, each with its place."""
    ids = np.arange(ROWS)
    return _rows(ids, np.random.default_rng(11).normal(size=ROWS).astype(np.float32), ids % sum(SHARDS.values()))


def grown_table() -> pa.Table:
    """All rows of the next version: some changed, some gone, some new."""
    before, ids = table(), np.arange(ROWS + ADDED)
    numbers = np.concatenate([before["x"].to_numpy(), np.linspace(5, 6, ADDED, dtype=np.float32)])
    new = sum(SHARDS.values()) + ids[ROWS:] % sum(NEW_SHARDS.values())
    place = np.concatenate([before["place"].to_numpy(), new])
    touched = np.isin(place, TOUCHED)
    rows = _rows(ids, np.where(touched & (ids % 7 == 1), numbers + 100, numbers), place)
    return rows.filter(pa.array(~(touched & (ids % 5 == 0))))


def _rows(ids: NDArray[Any], numbers: NDArray[np.float32], place: NDArray[Any]) -> pa.Table:
    notes = [None if i % 7 == 0 else f"note {i}" for i in ids]
    return pa.table({"id": ids, "x": numbers, "y": numbers * 2, "note": pa.array(notes, pa.string()), "place": place})


PLACES = [
    (split, increment, bucket)
    for increment, shards in enumerate((SHARDS, NEW_SHARDS))
    for split in SPLITS
    for bucket in range(shards[split])
]
_FRESH, _NEW = range(sum(SHARDS.values())), range(sum(SHARDS.values()), len(PLACES))
_TABLES = {False: table(), True: grown_table()}
_COLUMNS = ("id", "x", "y", "note")


def _of(rows: pa.Table, number: int) -> pa.Table:
    return rows.filter(pa.array(rows["place"].to_numpy() == number)).select(_COLUMNS)


def entry(shard: EncodedShard, number: int) -> ShardEntry:
    """What the manifest says of the shard of a place."""
    split, increment, bucket = PLACES[number]
    return ShardEntry.of(shard, split=split, increment=increment, bucket=bucket)


def growth() -> Growth:
    """What differs between the tables."""
    before, after = _TABLES.values()
    changed: Counter[int] = Counter()
    gone: Counter[int] = Counter()
    for number in TOUCHED:
        old, new = (_of(rows, number) for rows in (before, after))
        gone[number] = len(old) - len(new)
        changed[number] = int(np.count_nonzero(new["x"].to_numpy() > 50))
    added = Counter(PLACES[number][0] for number in after["place"].to_pylist() if number in _NEW)
    return Growth(tuple(added[split] for split in SPLITS), changed, gone)


def _assembled(entries: Sequence[ShardEntry], grows: bool) -> tuple[Manifest, dict[str, pa.Buffer]]:
    first = {split: (SHARDS[split],) for split in SPLITS}
    if not grows:
        return assemble(SCHEMA, {}, SPLITS, entries, buckets=first)
    base = assemble(SCHEMA, {}, SPLITS, [e for e in entries if not e.increment], buckets=first)[0]
    buckets = growth().buckets(base, Places(SPLITS, tuple(NEW_SHARDS[split] for split in SPLITS)))
    return assemble(SCHEMA, {}, SPLITS, entries, buckets=buckets)


@functools.cache
def reference(grows: bool) -> str:
    """The digest of a version of the table, from its rows alone."""
    numbers = range(len(PLACES)) if grows else _FRESH
    return _assembled([entry(write_shard(_of(_TABLES[grows], n), SCHEMA), n) for n in numbers], grows)[0].digest


def encoded(root: Store, number: int, grows: bool) -> EncodedShard:
    """The shard of a place; of one that is touched, those rows of the base's shard that stay are read from there."""
    rows = _of(_TABLES[grows], number)
    if not grows or number in _NEW:
        return write_shard(rows, SCHEMA)
    manifest = read_manifest(root, manifest_path(reference(False)))
    before = manifest.entry(number)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "shard.arrow"
        root.download(blob_path(before.blob), local)
        stored = open_shard(local, SCHEMA, blob=before.blob, size_bytes=before.size_bytes).table(_COLUMNS)
    comes = rows.filter(pa.array(rows["x"].to_numpy() > 50))
    stays = set(rows["id"].to_pylist()) - set(comes["id"].to_pylist())
    kept = stored.filter(pa.array([key in stays for key in stored["id"].to_pylist()]))
    return write_shard(pa.concat_tables([kept, comes.cast(kept.schema)]).sort_by("id"), SCHEMA)


def task(connection: Connection, root: str, what: tuple[int, bool], deadline_s: float) -> None:
    """Stores one shard and answers its entry."""
    number, grows = what
    store = open_store(root, deadline_s=deadline_s)
    shard = encoded(store, number, grows)
    put_shard(store, shard)
    connection.send(entry(shard, number).to_json())


def driver(connection: Connection, root: str, what: tuple[str, bool], deadline_s: float) -> None:
    """Takes the lease, waits for the entries, publishes, answers the digest."""
    build_id, grows = what
    store = open_store(root, deadline_s=deadline_s)
    with Build.start(store, "made", build_id) as build:
        kept = []
        if grows:
            kept = [*untouched(store, read_manifest(store, manifest_path(reference(False))), growth(), {})]
        connection.send("started")
        entries = [ShardEntry.from_json(entry) for entry in connection.recv()]
        manifest, blobs = _assembled([*kept, *entries], grows)
        digest = build.publish(manifest, blobs, {"who": build_id}).digest
    connection.send(digest)


def run(count: int, seed: int, folder: Path) -> Result:
    """Goes from case to case until so many faults were met."""
    result = Result("protocol", seed)
    case = seed
    with s3.serve(folder / "s3") as server:
        bucket = server.bucket()
        while _faults(result) < count and not result.failures[5:]:
            with result.case(case):
                rng = random.Random(case)
                remote = rng.random() < 0.75
                root = f"{bucket}/case-{case}" if remote else str(folder / f"case-{case}")
                files = server.local(root) if remote else Path(root)
                one = _Case(root, files, server if remote else None, rng, result, growing=case % 3 == 1)
                before = _faults(result)
                one.run()
                result.counts["builds that grow"] += one.grows
                result.counts["faults met by builds that grow"] += one.grows * (_faults(result) - before)
            case += 1
    result.figures["faults met"] = f"{_faults(result)} in {case - seed} builds"
    return result


def _faults(result: Result) -> int:
    return sum(number for what, number in result.counts.items() if what.startswith(("storage", "task", "driver")))


@dataclass
class _Fault:
    """What happens to one process: at its n-th request of a method, or at a random moment."""

    kind: str
    effect: Fault | None = None
    method: str = ""
    skip: int = 0
    times: int = 1
    kill: bool = False
    moment_s: float | None = None
    met: int = 0


@dataclass
class _Case:
    root: str
    files: Path
    server: s3.S3Server | None
    rng: random.Random
    result: Result
    growing: bool
    drivers: int = field(default=0)
    grows: bool = False

    def run(self) -> None:
        """Builds with faults until a dataset is there, then once more without."""
        if self.growing:
            assert self._build(1, faulty=False) == [reference(False)]
            self.grows = True
        wanted = reference(self.grows)
        builders = 2 if self.rng.random() < 0.4 else 1
        self.result.counts["builds with two builders"] += builders == 2
        for attempt in range(6):
            digests = self._build(builders, faulty=attempt < 5)
            self._check()
            if digests:
                assert set(digests) == {wanted}, "a published dataset is another one"
                break
        assert self._build(1, faulty=False) == [wanted], "an undisturbed build gives another dataset"
        self._check()
        self.result.counts["undisturbed builds afterwards, reference digest"] += 1

    def _build(self, builders: int, faulty: bool) -> list[str]:
        """Digests of the builders that published."""
        with ExitStack() as stack:
            running = []
            for _ in range(builders):
                self.drivers += 1
                fault = self._driver_fault() if faulty and self.rng.random() < 0.8 else None
                build_id = f"build-{self.drivers}"
                running.append((stack.enter_context(self._process(driver, build_id, fault=fault)), fault))
            ready = [(one, fault) for one, fault in running if self._says(one, fault) == "started"]
            answers = self._tasks(faulty) if ready else []
            for (process, connection), _ in ready:
                try:
                    connection.send(answers)
                except BrokenPipeError:
                    process.join()  # killed at a random moment
            said = [self._says(one, fault) for one, fault in ready]
        return [str(digest) for digest in said if digest is not None]

    def _tasks(self, faulty: bool) -> list[dict[str, Any]]:
        """Attempts of every task until each has answered; some twice at a time."""
        answers: dict[int, dict[str, Any]] = {}
        wanted = (*TOUCHED, *_NEW) if self.grows else _FRESH
        for attempt in range(20):
            missing = [number for number in wanted if number not in answers]
            if not missing:
                return [answers[number] for number in sorted(answers)]
            with ExitStack() as stack:
                running = []
                for number in missing:
                    twice = faulty and self.rng.random() < 0.25
                    self.result.counts["duplicate attempts at once"] += twice
                    for _ in range(1 + twice):
                        fault = self._task_fault() if faulty and attempt < 4 and self.rng.random() < 0.6 else None
                        running.append((number, stack.enter_context(self._process(task, number, fault=fault)), fault))
                for number, one, fault in running:
                    answer = self._says(one, fault)
                    if answer is not None:
                        assert answers.setdefault(number, answer) == answer, "two attempts answered differently"
        raise AssertionError("tasks never ended")

    def _says(self, one: warm.Warm, fault: _Fault | None) -> Any:
        """What a process answers; None if it was killed or gave up, which only a fault may cause."""
        process, connection = one
        if fault is not None and fault.moment_s is not None and not connection.poll(fault.moment_s):
            process.kill()
            fault.met += 1
        try:
            answer = warm.answer(process, connection)
        except (EOFError, ConnectionResetError, MltrainError) as error:
            if fault is None or not fault.met:
                raise AssertionError(f"a process that met no fault failed: {error!r}") from error
            answer = None
        if fault is not None and fault.met:
            self.result.counts[fault.kind] += fault.met
            fault.met = 0
        return answer

    @contextmanager
    def _process(self, target: Any, what: Any, *, fault: _Fault | None) -> Iterator[warm.Warm]:
        """A process, behind a proxy of its own where storage takes part in its fault."""
        deadline_s = _HASTY_S if fault is not None and fault.effect is Fault.HANG else _PATIENT_S
        environment = dict(self.server.env) if self.server else {}
        with ExitStack() as stack:
            proxy = None
            if self.server and fault is not None and fault.effect is not None:
                proxy = stack.enter_context(faults_http.before(self.server.endpoint))
                environment["AWS_ENDPOINT_URL"] = proxy.endpoint
            victim: list[warm.Warm] = []
            if proxy is not None and fault is not None:
                _arm(proxy, fault, victim)
            one = stack.enter_context(
                warm.started(target, self.root, (what, self.grows), deadline_s, environment=environment)
            )
            victim.append(one)
            yield one

    def _task_fault(self) -> _Fault:
        if self.server is None:
            return _Fault("task killed at a random moment, local root", moment_s=self.rng.uniform(0, 0.03))
        if self.rng.random() < 0.55:
            when = self.rng.choice(list(_MOMENTS))
            return _Fault(f"task killed {when} its upload", _MOMENTS[when], "PUT", kill=True)
        return self._storage_fault()

    def _driver_fault(self) -> _Fault:
        if self.server is None:
            return _Fault("driver killed at a random moment, local root", moment_s=self.rng.uniform(0, 0.2))
        if self.rng.random() < 0.6:
            # Its writes: lease, index, statistics, record, manifest, pointer, end of the lease.
            when, skip = self.rng.choice(list(_MOMENTS)), self.rng.randrange(1, 6)
            what = ["", "index", "statistics", "record", "manifest", "pointer"][skip]
            return _Fault(f"driver killed {when} its {what}", _MOMENTS[when], "PUT", skip, kill=True)
        return self._storage_fault()

    def _storage_fault(self) -> _Fault:
        effect = Fault.HANG if self.rng.random() < 0.08 else self.rng.choice(_UNKILLED)
        method = {Fault.CUT_UPLOAD: "PUT", Fault.SHORT_BODY: "GET", Fault.CUT_BODY: "GET"}.get(effect, "")
        times = 1 if effect is Fault.HANG else self.rng.randrange(1, 4)
        skip = 0 if method else self.rng.randrange(3)
        return _Fault(f"storage: {_SAID[effect]}", effect, method, skip, times)

    def _check(self) -> None:
        """What can be seen is whole, right and complete, to the row."""
        versions = {reference(False), reference(self.grows)}
        for manifest in self.files.glob("shards/*/manifest.json"):
            seen = Dataset.open(manifest.parent.name, root=self.files)
            assert seen.digest in versions
            report = seen.verify()
            assert report.ok, report.damaged
            rows = _TABLES[seen.digest != reference(False)]
            for split in seen.splits:
                found = seen.read(split, _COLUMNS).sort_by("id")
                numbers = [number for number, place in enumerate(PLACES) if place[0] == split]
                wanted = rows.filter(pa.array(np.isin(rows["place"].to_numpy(), numbers))).select(_COLUMNS)
                assert found.equals(wanted.sort_by("id")), f"other rows in {split}"
            self.result.counts["manifests seen and compared with the table, row by row"] += 1
        if self.grows or (self.files / "datasets/made.json").exists():
            assert Dataset.open("made", root=self.files).digest in versions


def _arm(proxy: faults_http.FaultyProxy, fault: _Fault, victim: Sequence[warm.Warm]) -> None:
    """Lets the fault happen to the requests after the first few of its method."""
    seen = 0
    assert fault.effect is not None
    effect = fault.effect

    def before(method: str, path: str) -> None:
        nonlocal seen
        if fault.method not in ("", method):
            return
        seen += 1
        if fault.skip < seen <= fault.skip + fault.times:
            fault.met += 1
            proxy.fail(effect, method=method)
            if fault.kill:
                _kill(victim)

    proxy.before_request = before


def _kill(victim: Sequence[warm.Warm]) -> None:
    while not victim:
        time.sleep(0.001)  # it has sent a request before its start was heard of
    process, _ = victim[0]
    process.kill()
    process.join()

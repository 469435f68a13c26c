"""Checkpoints: drivers and ranks are killed while they save, storage fails them, a paused driver wakes up; files rot.

A case is a run. One driver after another takes it up: it restores the newest checkpoint, trains (every number follows
from the step), saves with some ranks, and says so when a checkpoint is acknowledged. Each of them meets a fault: it is
killed at a random moment or at a request, or storage refuses, hangs or cuts what is on its way, or the driver is
stopped, another one takes the run, and it goes on. After each of them every checkpoint that can be seen is restored,
and the latest that were acknowledged are there. At the end of a case a file is flipped or cut, twice: the next driver
names it and goes on from the checkpoint before. ``count`` counts faults that were met; to six there are two such files.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from mltrain.errors import DamagedError, MltrainError
from mltrain.storage import Store, open_store
from mltrain.storage.lease import fence
from mltrain.train import checkpoints
from mltrain.train.checkpoints import read_tensors
from mltrain.train.lease import LEASE
from tests.chaos import warm
from tests.chaos.result import Result
from tests.support import faults_http, s3
from tests.support.faults_http import Fault
from tests.support.saving import METRIC, Ranks, same

KEEP = 2
STEPS = 6
"""That a driver trains before it ends."""
_PATIENT_S, _HASTY_S = 20.0, 1.0
_STORAGE = (
    Fault.UNAVAILABLE, Fault.CONFLICT, Fault.CUT_BEFORE, Fault.LOSE_ANSWER, Fault.CUT_BODY, Fault.SHORT_BODY,
    Fault.CUT_UPLOAD, Fault.HANG,
)  # fmt: skip
_KILLS = (Fault.CUT_BEFORE, Fault.CUT_UPLOAD, Fault.LOSE_ANSWER)


def driver(connection: Connection, root: str, seed: int, deadline_s: float) -> None:
    """Says where it begins, each checkpoint that is acknowledged, what it found damaged, and that it has ended."""
    torch.set_num_threads(1)
    chance = random.Random(seed)
    run = open_store(root, deadline_s=deadline_s)
    with Ranks(run, keep=KEEP) as ranks:
        step = _restored(ranks, run, connection)
        end = step + STEPS
        connection.send(("begins", step))
        while step < end:
            ranks.form(chance.randrange(1, 5))
            # A generation ends with its checkpoints made, or with them on their way, for ever incomplete.
            for _ in range(chance.randrange(1, 3)):
                step += 1
                ranks.copy(step, metrics={METRIC: abs(step % 7 - 3.0)})
                if chance.random() < 0.7:
                    _acknowledge(ranks, connection)
        _acknowledge(ranks, connection)
    connection.send(("ends", step))


def _restored(ranks: Ranks, run: Store, connection: Connection) -> int:
    """The step of the newest checkpoint that is whole; those that are not are set aside."""
    for step in ranks.damaged:
        connection.send(("damaged", checkpoints.manifest_path(step)))
    while (newest := ranks.shelf.newest) is not None:
        try:
            assert same(read_tensors(run, newest), newest.step), f"step {newest.step} restores to something else"
            return newest.step
        except DamagedError as error:
            connection.send(("damaged", str(error)))
            ranks.shelf.set_aside(newest.step)
    return 0


def _acknowledge(ranks: Ranks, connection: Connection) -> None:
    """Waits until what is on its way is durable."""
    while ranks.shelf.under_way() is not None:
        for writer in ranks.writers:
            writer.wait(lambda: None)
        made = ranks.take()
        if made is not None:
            connection.send(("acknowledged", (made.step, made.driver_epoch)))


def run(count: int, seed: int, folder: Path) -> Result:
    """Goes from case to case until so many faults were met."""
    result = Result("checkpoints", seed)
    case = seed
    with s3.serve(folder / "s3") as server, s3.environment(server):
        bucket = server.bucket()
        while result.counts["faults met"] < count and not result.failures[5:]:
            with result.case(case):
                chance = random.Random(case)
                remote = chance.random() < 0.7
                root = f"{bucket}/case-{case}" if remote else str(folder / f"case-{case}")
                files = server.local(root) if remote else Path(root)
                _Case(root, files, server if remote else None, chance, result).run()
            case += 1
    return result


@dataclass
class _Case:
    root: str
    files: Path
    server: s3.S3Server | None
    chance: random.Random
    result: Result
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    """Step and driver."""

    def run(self) -> None:
        for _ in range(6):
            self._faulty()
            self._check()
        for _ in range(2):
            self._undisturbed(self._rot() if self.chance.random() < 0.9 else None)
            self._check()

    def _faulty(self) -> None:
        """A driver that meets something."""
        kinds: list[Callable[[], None]] = [self._killed_at_a_moment, self._paused]
        if self.server is not None:
            kinds += [self._killed_at_a_request, self._killed_at_a_request, self._failed_by_storage]
        self.chance.choice(kinds)()

    def _killed_at_a_moment(self) -> None:
        with warm.started(driver, *self._arguments(), environment=self._environment()) as (process, connection):
            self._until_some_moment(connection)
            process.kill()
            process.join()
            self._listen(connection)
        self._met("killed at a random moment")

    def _killed_at_a_request(self) -> None:
        effect, at = self.chance.choice(_KILLS), self.chance.randrange(1, 60)
        victim: list[warm.Warm] = []
        if self._behind_a_proxy(effect, at, 1, victim, _PATIENT_S):
            self._met(f"killed at a request: {effect.value}")

    def _failed_by_storage(self) -> None:
        effect, at = self.chance.choice(_STORAGE), self.chance.randrange(1, 60)
        patience_s = _HASTY_S if effect is Fault.HANG else _PATIENT_S
        if self._behind_a_proxy(effect, at, self.chance.randrange(1, 4), None, patience_s):
            self._met(f"storage: {effect.value}")

    def _behind_a_proxy(
        self, effect: Fault, at: int, times: int, victim: list[warm.Warm] | None, patience_s: float
    ) -> bool:
        """A driver whose requests from number ``at`` meet a fault, or that is killed there. Whether it came so far."""
        assert self.server is not None
        seen = 0

        def before(method: str, path: str) -> None:
            nonlocal seen
            seen += 1
            if at <= seen < at + times:
                proxy.fail(effect)
                if victim is not None:
                    while not victim:
                        time.sleep(0.001)  # it has sent a request before its start was heard of
                    victim[0][0].kill()
                    victim[0][0].join()

        with faults_http.before(self.server.endpoint) as proxy:
            proxy.before_request = before
            environment = {**self._environment(), "AWS_ENDPOINT_URL": proxy.endpoint}
            with warm.started(driver, *self._arguments(patience_s), environment=environment) as one:
                if victim is not None:
                    victim.append(one)
                self._listen(one[1])
        return seen >= at

    def _paused(self) -> None:
        """A driver is stopped, another one takes the run, and both go on: only the other one is acknowledged."""
        with ExitStack() as stack:
            process, connection = stack.enter_context(
                warm.started(driver, *self._arguments(), environment=self._environment())
            )
            self._until_some_moment(connection)
            assert process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
            self._listen(connection, 0.0)
            store = open_store(self.root)
            if store.exists(LEASE):
                fence(store, LEASE)
            before = list(self.acknowledged)
            other = stack.enter_context(warm.started(driver, *self._arguments(), environment=self._environment()))
            self._until_some_moment(other[1])
            with contextlib.suppress(ProcessLookupError):  # it had come to its end
                os.kill(process.pid, signal.SIGCONT)
            taken = self._listen(connection, mine=False)
            self._listen(other[1])
            assert len(taken) <= 1, f"acknowledged after the run was taken: {taken}, before: {before}"
        self._met("stopped, and revived when another driver held the run")

    def _until_some_moment(self, connection: Connection) -> None:
        """Listens to a driver until it has said some things, and a little longer."""
        self._listen(connection, most=self.chance.randrange(STEPS + 1))
        self._listen(connection, self.chance.uniform(0, 0.02))

    def _listen(
        self, connection: Connection, for_s: float = 60.0, most: int | None = None, mine: bool = True
    ) -> list[tuple[int, int]]:
        """Takes what a driver says, until it ends or the time is over. Returns what it acknowledged."""
        said: list[tuple[int, int]] = []
        deadline, heard = time.monotonic() + for_s, 0
        while heard != most and connection.poll(max(0.0, deadline - time.monotonic())):
            heard += 1
            try:
                what = connection.recv()
            except (EOFError, ConnectionResetError):
                break
            if isinstance(what, MltrainError):
                continue  # storage was away for too long, or another driver holds the run
            if isinstance(what, BaseException):
                raise what
            kind, value = what
            assert kind != "damaged", f"damaged without damage: {value}"
            if kind == "acknowledged":
                said.append(value)
        self.result.counts["checkpoints acknowledged"] += len(said)
        if mine:
            self.acknowledged += said
        return said

    def _check(self) -> None:
        """What was acknowledged is there, unless newer ones have replaced it, and everything visible restores."""
        run = open_store(str(self.files))
        kept = checkpoints.stored(run)
        for each in list(kept):
            try:
                assert same(read_tensors(run, each), each.step), f"step {each.step} restores to something else"
            except DamagedError:
                # Put by a driver that was stopped between its renewal and the manifest, and told nobody of it.
                assert (each.step, each.driver_epoch) not in self.acknowledged, each.path
                assert each.driver_epoch < kept[-1].driver_epoch, each.path
                self.result.counts["late manifests of a stopped driver, that nobody uses"] += 1
                kept.remove(each)
        self.result.counts["checkpoints seen and restored to the last bit"] += len(kept)
        visible = [each.step for each in kept]
        last = sorted({step for step, _ in self.acknowledged})[-KEEP:]
        newer = [step for step in visible if step > max(last, default=0)]
        missing = set(last).difference(visible)
        assert len(missing) <= len(newer), f"acknowledged {last}, visible {visible}"
        # Retention may be under way: the best and the last ones stay, the rest goes soon.
        assert not last or visible[-1] >= last[-1]

    def _rot(self) -> Path | None:
        """Flips a byte of a file of the newest checkpoint, or cuts it."""
        kept = checkpoints.stored(open_store(str(self.files)))
        if not kept:
            return None
        names = [checkpoints.manifest_path(kept[-1].step), *(part.path for part in kept[-1].parts)]
        file = self.files / self.chance.choice(names[:1] + names)
        whole = file.read_bytes()
        where = self.chance.randrange(len(whole))
        if self.chance.random() < 0.7:
            file.write_bytes(whole[:where] + bytes([whole[where] ^ self.chance.randrange(1, 256)]) + whole[where + 1 :])
        else:
            file.write_bytes(whole[:where])
        return file

    def _undisturbed(self, rotten: Path | None) -> None:
        """A driver goes on from the newest whole checkpoint, and names the file that is not."""
        kept = [each.step for each in checkpoints.stored(open_store(str(self.files)))]
        told: dict[str, list[Any]] = {"damaged": [], "begins": [], "acknowledged": [], "ends": []}
        with warm.started(driver, *self._arguments(), environment=self._environment()) as (process, connection):
            while not told["ends"]:
                kind, value = warm.answer(process, connection)
                told[kind].append(value)
        before = [each for each in self.acknowledged if each[0] <= told["begins"][0]]
        self.acknowledged = [*before, *told["acknowledged"]]
        if rotten is None:
            assert told["damaged"] == [] and told["begins"] == [max(kept, default=0)]
            return
        named = [what for what in told["damaged"] if rotten.name in what]
        if rotten.name == "manifest.json" and not told["damaged"]:
            self.result.counts["white space of a manifest changed, read all the same"] += 1
            return
        assert len(told["damaged"]) == len(named) == 1, f"{rotten} is rotten, {told['damaged']} was named"
        self.result.counts["rotten files found and named, the checkpoint before used"] += 1

    def _arguments(self, patience_s: float = _PATIENT_S) -> tuple[str, int, float]:
        return self.root, self.chance.randrange(1 << 30), patience_s

    def _environment(self) -> dict[str, str]:
        return dict(self.server.env) if self.server else {}

    def _met(self, what: str) -> None:
        self.result.counts["faults met"] += 1
        self.result.counts[what] += 1

"""`workers: 0`: trainer and controller in this thread, without Ray and Horovod."""

import logging
import queue

import torch

from mltrain.collectives import LocalCollectives, Membership
from mltrain.errors import MltrainError, TrainingError
from mltrain.train.control import Ending, Message, Outcome, Row, Verdict, Wishes, failure
from mltrain.train.record import RunRecord
from mltrain.train.signals import StopRequest
from mltrain.train.spec import Spec, Task
from mltrain.train.trainer import Trainer
from mltrain.train.usercode import RAISED

_LOG = logging.getLogger(__name__)


class _Direct:
    """A `Control` whose other side is the record itself; messages of the writing thread wait for the next step."""

    def __init__(self, record: RunRecord, stop: StopRequest) -> None:
        self._record = record
        self._stop = stop
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def metrics(self, row: Row) -> None:
        self._record.row(row)

    def send(self, message: Message) -> None:
        self._messages.put(message)

    def wishes(self) -> Wishes:
        self.check()
        stop = self._stop.requested
        return Wishes(
            stop=stop or self._record.verdict is Verdict.STOP, checkpoint=stop or self._record.checkpoint_due()
        )

    def check(self) -> None:
        self._record.watch()
        while not self._messages.empty():
            self._record.handle(self._messages.get())

    def broken(self) -> None:
        """There is nobody to go on: the error is the run's."""

    def wait_decided(self, step: int) -> None:
        # The trainer has waited for its writer before, and nobody else sends: what answers is here, or never comes.
        self.check()
        if self._record.decided < step:
            raise TrainingError(f"the evaluation after step {step} has no checkpoint, so it was never reported")


def train(spec: Spec, record: RunRecord, stop: StopRequest) -> Outcome:
    """Trains to the end or to a stop."""
    # As many threads as one worker has: sums are then split alike, and the numbers are the same to the last bit.
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(spec.config.train.workers.cpus)))
    control = _Direct(record, stop)
    try:
        try:
            trainer = Trainer(spec, control, LocalCollectives())
        except RAISED as error:
            return failure(error, -1)
        return _generations(trainer, control, record)
    finally:
        torch.set_num_threads(threads)


def _generations(trainer: Trainer, control: _Direct, record: RunRecord) -> Outcome:
    try:
        generation = 0
        while True:
            generation += 1
            restore = record.newest
            record.begin_generation(generation, ["local"], "training in this process")
            outcome = trainer.run(
                Membership(generation),
                Task(
                    driver_epoch=record.driver_epoch,
                    recorded=record.recorded,
                    decided=record.decided,
                    restore=restore,
                ),
            )
            if outcome.ending is Ending.DAMAGED and restore is not None:
                record.set_aside(restore.step, outcome.reason)
                record.restore_point()
                continue
            # Also of a run that failed: a checkpoint on its way to storage still gets there.
            trainer.close()
            try:
                control.check()
            except MltrainError as error:
                if outcome.ending is not Ending.FAILED:
                    raise
                _LOG.warning("after the failure: %s", error)
            return outcome
    finally:
        trainer.close()

from ray.tune.schedulers import TrialScheduler

from mltrain.tune.schedule import Schedule, asha
from tests.unit.test_tune_space import experiment

ASHA = {"name": "asha", "grace_steps": 10, "reduction_factor": 2}
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
# The objective is the default: validation/loss, to be minimised.


def test_asha_ends_who_is_worse_at_a_rung_and_nobody_before_it() -> None:
    schedule = Schedule(asha(experiment(scheduler=ASHA), 100), broker=None)
    assert schedule.judge("good", 10, 0.1) == CONTINUE
    assert schedule.judge("bad", 9, 0.9) == CONTINUE
    assert schedule.judge("bad", 10, 0.9) == STOP
    assert schedule.judge("better", 10, 0.05) == CONTINUE


def test_after_a_resume_asha_judges_as_if_it_had_never_been_away() -> None:
    past = [("good", 10, 0.1), ("fair", 10, 0.3)]
    schedule = Schedule(asha(experiment(scheduler=ASHA), 100), broker=None, past=past)
    assert schedule.judge("new", 10, 0.9) == STOP
    # A trial that was running has passed this rung: it is not judged there again.
    assert schedule.judge("fair", 15, 9.9) == CONTINUE
    assert schedule.judge("fair", 20, 9.9) == CONTINUE


def test_nobody_is_ended_at_the_last_step() -> None:
    schedule = Schedule(asha(experiment(scheduler=ASHA), 50), broker=None)
    assert schedule.judge("only", 50, 0.5) == CONTINUE


def test_fifo_ends_nobody() -> None:
    schedule = Schedule(asha(experiment(), 100), broker=None)
    assert [schedule.judge(name, 50, loss) for name, loss in (("a", 0.1), ("b", 9.9))] == [CONTINUE, CONTINUE]


def test_a_grace_longer_than_the_training_is_no_error() -> None:
    schedule = Schedule(asha(experiment(scheduler={**ASHA, "grace_steps": 1000}), 50), broker=None)
    assert schedule.judge("a", 50, 0.1) == CONTINUE

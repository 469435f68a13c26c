"""What fails again and again ends a run; what fails now and then does not."""

from mltrain.train import retries
from mltrain.train.retries import Retries


def test_workers_that_never_get_ready_end_the_run_unless_one_ever_was() -> None:
    hopeless, proven = Retries(), Retries()
    proven.ready()
    said = [hopeless.not_started(n, n + 0.5, "why", "where") for n in range(retries._FAILED_STARTS)]
    assert said[:-1] == [None] * (retries._FAILED_STARTS - 1)
    assert f"{retries._FAILED_STARTS} workers died" in str(said[-1]) and "why (what it printed: where)" in str(said[-1])
    assert not any(proven.not_started(n, n + 0.5, "why", "where") for n in range(100))


def test_losses_without_progress_end_the_run_and_any_progress_begins_anew() -> None:
    stuck, slow = Retries(), Retries()
    assert [stuck.lost(n, 7, "why", "where") for n in range(retries._BARREN)][:-1] == [None] * (retries._BARREN - 1)
    assert "did not get beyond step 7" in str(stuck.lost(100, 7, "why", "where"))
    assert not any(slow.lost(n, n // (retries._BARREN - 1), "why", "where") for n in range(200))


def test_generations_that_do_no_step_end_the_run_and_any_step_begins_anew() -> None:
    stuck, slow = Retries(), Retries()
    said = [stuck.ended("a reason") for _ in range(retries._FRUITLESS)]
    assert said[:-1] == [None] * (retries._FRUITLESS - 1) and "the last: a reason" in str(said[-1])
    for _ in range(100):
        assert slow.ended("a reason") is None
        slow.stepped()

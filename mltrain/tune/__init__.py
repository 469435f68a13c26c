"""Sweeps: Ray Tune schedules trials, and each trial is an elastic training."""

from mltrain.tune.result import SweepResult, Trial
from mltrain.tune.sweep import run

__all__ = ["SweepResult", "Trial", "run"]

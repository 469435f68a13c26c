"""Elastic training: a controller, its workers, checkpoints, and the results of runs."""

from mltrain.train.control import Report, Verdict
from mltrain.train.result import Result, load
from mltrain.train.run import run
from mltrain.train.signals import StopRequest

__all__ = ["Report", "Result", "StopRequest", "Verdict", "load", "run"]

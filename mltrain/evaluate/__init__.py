"""Losses, scores and metrics by label type, exact over any number of workers."""

from mltrain.evaluate.evaluation import Evaluation, evaluate
from mltrain.evaluate.metrics import metrics
from mltrain.evaluate.tasks import Task, tasks, total_loss

__all__ = ["Evaluation", "Task", "evaluate", "metrics", "tasks", "total_loss"]

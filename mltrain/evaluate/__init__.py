"""Losses, scores and metrics by label type, exact over any number of workers."""

from mltrain.evaluate.evaluation import Evaluation, evaluate, metric_names
from mltrain.evaluate.metrics import metrics
from mltrain.evaluate.tasks import Task, tasks, total_loss

__all__ = ["Evaluation", "Task", "evaluate", "metric_names", "metrics", "tasks", "total_loss"]

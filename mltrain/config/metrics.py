"""Which metrics follow from a label's type: known without torch, and before there is a model."""

from collections.abc import Mapping

BY_TYPE = {
    "binary": ("auc", "auc_pr", "log_loss", "accuracy"),
    "multiclass": ("log_loss", "accuracy", "macro_f1"),
    "multilabel": ("auc", "auc_pr", "log_loss", "accuracy"),
    "regression": ("rmse", "mae", "r2"),
}


def label_metrics(types: Mapping[str, str]) -> list[str]:
    """The metrics of labels of these types, by task; with several tasks they are called ``<task>.<metric>``."""
    return [f"{metric_prefix(task, len(types))}{name}" for task, type_ in types.items() for name in BY_TYPE[type_]]


def metric_prefix(task: str, tasks: int) -> str:
    """What stands before the names of a task's metrics, among so many tasks."""
    return "" if tasks == 1 else f"{task}."

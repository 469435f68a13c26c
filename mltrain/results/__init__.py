"""What happened: a run's events and metrics, the runs table, and the way back from a result to its data."""

from mltrain.results.lineage import lineage
from mltrain.results.log import RunLog, read_events, read_metrics, read_result
from mltrain.results.plots import plot
from mltrain.results.show import show
from mltrain.results.table import RunRow, add_metrics, append, ensure_table, get, runs

__all__ = [
    "RunLog",
    "RunRow",
    "add_metrics",
    "append",
    "ensure_table",
    "get",
    "lineage",
    "plot",
    "read_events",
    "read_metrics",
    "read_result",
    "runs",
    "show",
]

"""What happened: a run's events and metrics, the runs table, and the way back from a result to its data."""

from mltrain.results.lineage import lineage
from mltrain.results.log import LONGEST_RUN_ID, RunLog, checked_run_id, read_events, read_metrics, read_result, run_path
from mltrain.results.plots import plot
from mltrain.results.show import show
from mltrain.results.table import RunRow, add_metrics, append, ensure_table, get, runs
from mltrain.results.trials import config_of, objective_of, space_of, trials_of

__all__ = [
    "LONGEST_RUN_ID",
    "RunLog",
    "RunRow",
    "add_metrics",
    "append",
    "checked_run_id",
    "config_of",
    "ensure_table",
    "get",
    "lineage",
    "objective_of",
    "plot",
    "read_events",
    "read_metrics",
    "read_result",
    "run_path",
    "runs",
    "show",
    "space_of",
    "trials_of",
]

"""One run as a person wants to see it: its row, what happened, how it went."""

from typing import Any

from mltrain.results.log import read_events
from mltrain.results.table import get, runs
from mltrain.storage import open_store

_MANY = 200


def show(root: str, run_id: str) -> dict[str, Any]:
    """A run's latest row, with its ``events`` (the last 200), and for a sweep the rows of its ``trials``.

    Raises:
        NotFoundError: there is no such run.
        StorageError: storage failed or refused.
    """
    row = get(root, run_id)
    kind = "sweeps" if row["kind"] == "sweep" else "runs"
    row["events"] = read_events(open_store(root), run_id, kind=kind)[-_MANY:]
    if row["kind"] == "sweep":
        table = runs(root)
        row["trials"] = [trial for trial in table.to_pylist(maps_as_pydicts="strict") if trial["sweep_id"] == run_id]
    return row

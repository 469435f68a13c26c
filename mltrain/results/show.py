"""One run as a person wants to see it: its row, what it set, what happened, how it went."""

from dataclasses import asdict
from typing import Any

from mltrain.results.log import read_events, run_path
from mltrain.results.spent import spent
from mltrain.results.story import story
from mltrain.results.table import get, runs
from mltrain.results.trials import objective_of, parameters, space_of, trials_of
from mltrain.storage import Store, open_store

_MANY = 200


def show(root: str, run_id: str) -> dict[str, Any]:
    """A run's latest row with its last 200 ``events``, and all of them as a ``story``: ``seconds`` and ``text``.

    ``node_seconds`` are by market of the nodes and by what became of them (`mltrain.results.spent.Spent`).

    A trial has its ``parameters`` too, by dotted key; a sweep has no story, but the rows of its ``trials``, each with
    its parameters.

    Raises:
        NotFoundError: there is no such run.
        StorageError: storage failed or refused.
    """
    row = get(root, run_id)
    kind = "sweeps" if row["kind"] == "sweep" else "runs"
    store = open_store(root)
    events = read_events(store, run_id, kind=kind)
    # The first object of an attempt is written, and says so, after what it has to say happened.
    events.sort(key=lambda event: (event["attempt"], event["time"]))
    row["events"] = events[-_MANY:]
    if row["kind"] == "sweep":
        row["trials"] = trials_of(runs(root), row)
        return row
    row["node_seconds"] = {market: asdict(found) for market, found in spent(events).items()}
    row["story"] = [{"seconds": c.at_s, "text": c.text} for c in story(events, objective_of(row)[0])]
    if row["sweep_id"] is not None:
        row["parameters"] = parameters(row, _varied(store, row["sweep_id"]))
    return row


def _varied(store: Store, sweep_id: str) -> list[str]:
    """What a sweep varies, also while it runs and has no row yet."""
    path = f"{run_path(sweep_id, 'sweeps')}/config.yaml"
    return list(space_of({"config": store.get(path).decode()})) if store.exists(path) else []

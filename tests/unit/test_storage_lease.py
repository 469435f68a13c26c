"""Leases: one holder at a time, and those that were lost are known to be."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from mltrain.errors import DamagedError
from mltrain.storage import lease as leases
from mltrain.storage import open_store
from mltrain.storage.lease import EXPIRES_S, HeldError, Lease, LostError, fence, read_holder

HOLDER = {"term": 1, "host": "h", "boot": "b", "pid": 1, "started": 1, "renewed": 1.0, "released": False}


def test_a_second_holder_is_told_who_the_first_is_and_takes_over_once_it_has_released(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = Lease.acquire(store, "lease.json")
    with pytest.raises(HeldError, match=r"held by process \d+ on .* \(term 1"):
        Lease.acquire(store, "lease.json")
    first.release()
    second = Lease.acquire(store, "lease.json")
    assert second.term == 2
    second.release()


def test_the_lease_of_a_process_that_is_gone_is_taken_and_the_old_holder_finds_out(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    paused = Lease.acquire(store, "lease.json")
    _age(store.join("lease.json"), EXPIRES_S + 1)
    # Whoever wrote the object in between is somebody else, by its tag.
    taken = Lease.acquire(store, "lease.json")
    with pytest.raises(LostError, match="taken by another process"):
        paused.renew()
    with pytest.raises(LostError):
        paused.check()
    paused.release()
    taken.check()
    taken.release()


def test_a_fenced_holder_cannot_renew(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    lease = Lease.acquire(store, "lease.json")
    fence(store, "lease.json")
    with pytest.raises(LostError):
        lease.renew()
    lease.release()
    holder, _ = read_holder(store, "lease.json")
    assert holder is not None and holder.released


def test_a_holder_that_was_paused_asks_before_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    held = Lease.acquire(store, "lease.json")
    fence(store, "lease.json")
    held.watch()  # it cannot know yet, and asks nobody
    now = leases._now()
    monkeypatch.setattr(leases, "_now", lambda: now + EXPIRES_S + 1)
    with pytest.raises(LostError, match="taken by another process"):
        held.watch()
    monkeypatch.undo()
    with pytest.raises(LostError):
        held.watch()
    held.release()


def test_what_is_recorded_stands_beside_the_lease_and_stays_alone_when_it_is_released(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    lease = Lease.acquire(store, "lease.json")
    lease.record({"digest": "abc"})
    during = json.loads(store.get("lease.json"))
    assert during["digest"] == "abc" and not during["lease"]["released"]
    lease.release()
    assert json.loads(store.get("lease.json")) == {"digest": "abc"}


@pytest.mark.parametrize(
    "content",
    ["", "x", '"x"', "[]", "{}", '{"lease": null}', '{"lease": "a"}', '{"lease": {"term": 1}}', "[" * 100_000]
    + [json.dumps({"lease": {**HOLDER, **wrong}}) for wrong in ({"term": True}, {"renewed": "now"}, {"more": 1})],
    ids=lambda content: content[:30],
)
def test_a_damaged_lease_is_nobodys_to_take(tmp_path: Path, content: str) -> None:
    store = open_store(tmp_path)
    store.put("lease.json", content.encode())
    for use in (read_holder, Lease.acquire, fence):
        with pytest.raises(DamagedError, match="lease .*/lease.json is damaged: .*remove it when"):
            use(store, "lease.json")
    assert store.get("lease.json") == content.encode()


def _age(path: str, seconds: float) -> None:
    """Rewrites a lease as if its last renewal had been so long ago."""
    file = Path(path)
    content = json.loads(file.read_text())
    content["lease"]["renewed"] = time.time() - seconds
    file.write_text(json.dumps(content))


def test_holders_are_gone_when_released_when_silent_and_when_their_process_is_dead(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    lease = Lease.acquire(store, "lease.json")
    holder, _ = read_holder(store, "lease.json")
    lease.release()
    assert holder is not None
    now = time.time()
    assert not holder.gone(now)
    assert dataclasses.replace(holder, released=True).gone(now)
    assert holder.gone(now + EXPIRES_S + 1)
    assert dataclasses.replace(holder, started=holder.started - 1).gone(now), "another process with its id"
    elsewhere = dataclasses.replace(holder, host="other", started=holder.started - 1)
    assert not elsewhere.gone(now), "what lives on another host cannot be seen from here"

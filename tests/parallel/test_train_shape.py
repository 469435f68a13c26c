"""Trainings on hosts with several workers each, not the same number on all; in parts of a step; in bf16."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mltrain import train
from mltrain.results import read_events, read_metrics
from mltrain.storage import open_store
from tests.support.datasets import make_dataset
from tests.support.hosts import Hosts, hosts, unavailable
from tests.support.training import ROWS, equal, experiment, faulty, parse, weights

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

# A model that says where it sits, with how many rows it is called, and of what type its outputs and gradients are; one
# process of it ends at a step.
SEATED_MODEL = """
import json, os, signal
from pathlib import Path

import torch
from mltrain.models import TabularMLP


class Model(TabularMLP):
    def __init__(self, schema, at, seen, flag):
        super().__init__(schema, (16,), 0.1, None, True)
        self.at, self.seen, self.flag = at, seen, flag

    def forward(self, batch):
        outputs = super().forward(batch)
        if self.training:
            if self.at == [batch.epoch, batch.step] and os.environ["HOROVOD_RANK"] == "1" and self._first():
                os.kill(os.getpid(), signal.SIGKILL)
            seat = [int(os.environ[f"HOROVOD_{name}"]) for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
            gradients = {str(p.grad.dtype) for p in self.parameters() if p.grad is not None}
            types = sorted({str(value.dtype) for value in outputs.values()} | gradients)
            said = {"pid": os.getpid(), "seat": seat, "rows": batch.rows, "types": types}
            with Path(self.seen, str(os.getpid())).open("a") as file:
                file.write(json.dumps(said) + "\\n")
        return outputs

    def _first(self):
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def build(schema, at, seen, flag):
    torch.manual_seed(1)
    return Model(schema, at, seen, flag)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(2, tmp_path_factory.mktemp("hosts"), cpus=3) as made:
        yield made


def seats(root: Path, run_id: str, seen: Path) -> list[dict[str, list[tuple[int, ...]]]]:
    """Of each generation the seats, (rank, size, local rank, local size), that its workers were in, by node."""
    events = read_events(open_store(root), run_id)
    place = {event["worker"]: (event["node"], event["pid"]) for event in events if event["event"] == "worker ready"}
    said = {path.name: path.read_text() for path in seen.iterdir() if path.name.isdecimal()}
    found = []
    for event in events:
        if event["event"] == "generation formed":
            nodes = defaultdict(list)
            for rank, worker in enumerate(event["members"]):
                node, pid = place[worker]
                size, on_node = len(event["members"]), [w for w in event["members"] if place[w][0] == node]
                seat = (rank, size, on_node.index(worker), len(on_node))
                assert f'"seat": {list(seat)}' in said[str(pid)]
                nodes[node].append(seat)
            found.append(dict(nodes))
    return found


def test_unequal_numbers_of_workers_in_bf16_and_in_parts_of_a_step_through_a_loss(two: Hosts, tmp_path: Path) -> None:
    make_dataset(tmp_path, rows=ROWS, shards=6)
    mapping = experiment(tmp_path, workers=3, address=two.address, precision="bf16", max_local_batch_size=20)
    results = {}
    for name, at in (("quiet", None), ("killed", [1, 7])):
        seen = tmp_path / name
        seen.mkdir()
        model = faulty(mapping, seen, SEATED_MODEL, at=at, seen=str(seen), flag=str(tmp_path / "flag"))
        results[name] = train.run(parse(model), run_id=name)
        generations = seats(tmp_path, name, seen)
        assert len(generations) == (1 if at is None else 2)
        for nodes in generations:
            assert sorted(map(len, nodes.values())) == [1, 2]
            assert sorted(seat[0] for node in nodes.values() for seat in node) == [0, 1, 2]
        said = "".join(path.read_text() for path in seen.iterdir() if path.name.isdecimal())
        # 128 rows are 43, 43 and 42, of which no more than 20 are seen at a time.
        assert '"rows": 20,' in said and '"rows": 3,' in said and '"rows": 21,' not in said
        assert '["torch.bfloat16", "torch.float32"]' in said and '"torch.float16"' not in said
    quiet, killed = results["quiet"], results["killed"]
    assert (killed.losses_survived, killed.steps_repeated, killed.step) == (1, 1, quiet.step)
    samples = [read_metrics(open_store(tmp_path), name)["train/samples"].to_pylist() for name in results]
    assert samples[0] == samples[1]
    last = [weights(tmp_path, name, quiet.step) for name in results]
    assert equal(*last)
    assert all(value.dtype == np.float32 for name, value in last[0].items() if name.startswith("model."))

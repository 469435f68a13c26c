"""The tools by name."""

from collections.abc import Mapping

from benchmarks.recovery_peers.horovod_side import HorovodSide
from benchmarks.recovery_peers.ours_side import OursSide
from benchmarks.recovery_peers.ray_train_side import RayTrainSide
from benchmarks.recovery_peers.side import Side
from benchmarks.recovery_peers.torchft_side import TorchftSide

TOOLS: Mapping[str, type[Side]] = {
    "ours": OursSide,
    "torchft": TorchftSide,
    "ray_train": RayTrainSide,
    "horovod": HorovodSide,
}

"""Sums gradients over the ranks of a generation while backward is still running."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from mltrain.collectives import Collectives, Handle
from mltrain.errors import TrainingError

BUCKET_BYTES = 8 << 20
_REDUCIBLE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Tally:
    """What rides along with the gradients: each rank gives its own, all get the sum.

    Attributes:
        stop: ranks that want to stop after this step.
        checkpoint: ranks that want a checkpoint after this step.
        saving: ranks whose share of an earlier checkpoint is not durable yet.
        nonfinite: ranks whose loss is not finite.
        rows: rows of the step.
        loss: weighted sum of the rows' losses.
        weight: sum of the rows' weights.
        samples: order-free hash of the rows' numbers, modulo 2^64: equal for the same rows however they are spread.
    """

    stop: int = 0
    checkpoint: int = 0
    saving: int = 0
    nonfinite: int = 0
    rows: int = 0
    loss: float = 0.0
    weight: float = 0.0
    samples: int = 0


# Integers travel as bytes and doubles as two floats, so that sums in fp32 stay exact (or nearly) for up to 65536 ranks.
_COUNTED = 3 + 4 + 8
_MEASURED = 1 + 2 + 2
_WIDTH = _COUNTED + _MEASURED


def _encode(tally: Tally, measured: Tensor) -> Tensor:
    """A tally as fp32. ``measured`` holds sums of losses and weights, fp64, and is not waited for if on a device."""
    counted = [float(tally.stop), float(tally.checkpoint), float(tally.saving)]
    counted += [float((tally.rows >> shift) & 0xFF) for shift in range(0, 32, 8)]
    counted += [float((tally.samples >> shift) & 0xFF) for shift in range(0, 64, 8)]
    finite = measured.isfinite().all()
    clean = measured.where(finite, 0.0)
    high = clean.float()
    low = (clean - high).float()
    start = torch.tensor(counted, dtype=torch.float32).to(measured.device, non_blocking=True)
    return torch.cat([start, (~finite).float().reshape(1), high, low])


def _decode(values: Sequence[float]) -> Tally:
    rows = sum(int(value) << (8 * index) for index, value in enumerate(values[3:7]))
    samples = sum(int(value) << (8 * index) for index, value in enumerate(values[7:15])) & 0xFFFF_FFFF_FFFF_FFFF
    nonfinite, loss, weight, loss_low, weight_low = values[_COUNTED:]
    stop, checkpoint, saving = (int(value) for value in values[:3])
    return Tally(stop, checkpoint, saving, int(nonfinite), rows, loss + loss_low, weight + weight_low, samples)


class Reducer:
    """Gradient buckets of one model in one generation; its hooks live as long as it is open.

    Every parameter's ``grad`` is a view of a flat bucket, filled by backward. A bucket's sum starts when all of its
    gradients are there (parameters that got none count as zeros), in the same order on every rank. Nothing may be used
    before `finish`.

    Args:
        model: its parameters that require gradients, in fp32 or fp64.
        collectives: of the generation.

    Raises:
        TrainingError: a parameter of another type.
    """

    def __init__(self, model: nn.Module, collectives: Collectives) -> None:
        self._collectives = collectives
        parameters = _trainable(model)
        self._required = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
        self._buckets = _buckets(parameters)
        self._views = {parameter: view for bucket in self._buckets for parameter, view in bucket.views.items()}
        self._of = {parameter: bucket for bucket in self._buckets for parameter in bucket.views}
        self._hooks = [_hook(parameter, self._arrived) for parameter in parameters]
        self._launched: list[Handle] = []
        self._armed = False
        self._complete: set[nn.Parameter] = set()

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self._buckets[-1].flat.device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def begin(self) -> None:
        """Starts a step: all gradients are zero."""
        self._armed = False
        self._launched = []
        self._complete.clear()
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.missing = len(bucket.views)
        for parameter, view in self._views.items():
            parameter.grad = view

    def arm(self, tally: Tally, measured: Tensor) -> None:
        """The next backward is the step's last on this rank: reduce as gradients arrive.

        Args:
            tally: rides along, but for what is measured.
            measured: sum of the losses and sum of the weights, fp64, on the device of the gradients.

        Raises:
            TrainingError: other parameters require gradients than did before.
        """
        if changed := [name for name, parameter, before in self._required if parameter.requires_grad != before]:
            raise TrainingError(
                f"Parameter {changed[0]!r} was frozen or unfrozen (requires_grad) during training. Workers that join "
                "later, and a run that is resumed, could not know. Decide it when the model is built, and train in "
                "several runs where it is to change."
            )
        self._buckets[-1].flat[-_WIDTH:] = _encode(tally, measured)
        self._armed = True

    def finish(self) -> Tally:
        """Starts what has not started, waits for everything, and returns the sum of the tallies.

        Raises:
            CollectiveAborted: then all gradients are void.
        """
        while len(self._launched) < len(self._buckets):
            self._launch()
        for handle in self._launched:
            handle.wait()
        self._armed = False
        return _decode(self._buckets[-1].flat[-_WIDTH:].tolist())

    def scale(self, factor: float) -> None:
        """Multiplies all gradients."""
        for bucket in self._buckets:
            bucket.gradients.mul_(factor)

    def norm(self) -> float:
        """L2 norm of the gradient, equal on every rank because the sums are."""
        norms = [torch.linalg.vector_norm(bucket.gradients) for bucket in self._buckets]
        return (
            float(norms[0])
            if len(norms) == 1
            else float(torch.linalg.vector_norm(torch.stack([n.double() for n in norms])))
        )

    def _arrived(self, parameter: nn.Parameter) -> None:
        view = self._views[parameter]
        gradient = parameter.grad
        if gradient is not view and gradient is not None:
            # Autograd replaces the tensor instead of adding to it when a sparse gradient comes.
            view.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
            parameter.grad = view
        if not self._armed:
            return
        if parameter in self._complete:
            # Which one is the last cannot be known, and the sum may be under way.
            raise TrainingError(
                "The gradient of a parameter came more than once in one backward pass. Reentrant activation "
                "checkpointing of a layer that is used more than once does that: call torch.utils.checkpoint with "
                "use_reentrant=False."
            )
        self._complete.add(parameter)
        self._of[parameter].missing -= 1
        while len(self._launched) < len(self._buckets) and self._buckets[len(self._launched)].missing <= 0:
            self._launch()

    def _launch(self) -> None:
        index = len(self._launched)
        self._launched.append(self._collectives.allreduce_sum(self._buckets[index].flat, f"bucket.{index}"))


class _Bucket:
    def __init__(self, parameters: list[nn.Parameter], extra: int) -> None:
        first = parameters[0]
        count = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(count + extra, dtype=first.dtype, device=first.device)
        self.gradients = self.flat[:count]
        parts = torch.split(self.gradients, [parameter.numel() for parameter in parameters])
        self.views = {parameter: part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)}
        self.missing = 0


def _buckets(parameters: list[nn.Parameter]) -> list[_Bucket]:
    """Last parameters first, as backward reaches them; the tally lies at the end of the last bucket."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        same = bool(groups) and groups[-1][0].dtype == parameter.dtype and groups[-1][0].device == parameter.device
        if not same or size > room:
            groups.append([])
            room = BUCKET_BYTES
        groups[-1].append(parameter)
        room -= size
    return [_Bucket(group, _WIDTH if index == len(groups) - 1 else 0) for index, group in enumerate(groups)]


def _hook(parameter: nn.Parameter, arrived: Callable[[nn.Parameter], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError(
            f"{type(model).__name__} has no parameters that require gradients: there is nothing to train"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in _REDUCIBLE:
            raise TrainingError(
                f"Parameter {name!r} is {parameter.dtype}; mltrain keeps parameters and gradients in float32 "
                "(or float64). For bfloat16 arithmetic set train.precision=bf16."
            )
    return parameters

"""Learning-rate schedules as pure functions of the step: nothing to store, nothing to restore."""

import math


def factor(name: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the base learning rate is multiplied by in step ``step`` (from 0).

    Warm-up rises linearly to 1 over ``warmup_steps``; then ``constant`` stays, ``linear`` falls to 0 at
    ``total_steps``, ``cosine`` follows half a cosine to 0 (Loshchilov and Hutter 2017, without restarts).

    Raises:
        ValueError: unknown name.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - progress
    if name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"a schedule is constant, linear or cosine, not {name!r}")

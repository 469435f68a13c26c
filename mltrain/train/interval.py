"""How often to make a checkpoint."""

import math

# One loss in this time is assumed before any was seen.
PRIOR_LOSS_S = 3600.0
SHORTEST_S = 5.0
LONGEST_S = 1800.0


def checkpoint_interval_s(cost_s: float, losses: int, observed_s: float) -> float:
    """Seconds between checkpoints that lose the least work (Young 1974, Daly 2006, first order).

    ``sqrt(2 C M)`` for a checkpoint's cost C and a mean time M between losses of the whole run's state. M is estimated
    with one loss an hour as the prior: ``(observed + prior) / (losses + 1)``.

    Args:
        cost_s: what a checkpoint costs the training: the stall of the step loop.
        losses: times that the state was lost: a worker that is lost while others hold the state costs no more than a
            step.
        observed_s: for how long.

    Raises:
        ValueError: a negative argument.
    """
    if cost_s < 0 or losses < 0 or observed_s < 0:
        raise ValueError(f"negative: cost {cost_s}, losses {losses}, observed {observed_s}")
    between_losses_s = (observed_s + PRIOR_LOSS_S) / (losses + 1)
    return min(LONGEST_S, max(SHORTEST_S, math.sqrt(2.0 * cost_s * between_losses_s)))

"""How far a moving average lags behind what it averages, and when to read it instead. Torch-free.

From theta_0 on, with decay m, the average after n steps is

    bar_n = m^n theta_0 + (1 - m) sum_{k=1..n} m^(n-k) theta_k,

whose weights have the mean time mu(n) = sum of weight * k = n - tau (1 - m^n), tau = m / (1 - m): it lags by almost tau steps, once
it has run for a few times tau. So where theta moves in a straight line, bar_n = theta_{mu(n)} exactly; and the average that stands for
step k is the one of step mu^-1(k).
"""

import math


def mean_time(steps: float, decay: float) -> float:
    """mu(n): the mean time of the weights of an average after n = `steps` steps; not above n, and 0 at 0."""
    return steps + decay / (1 - decay) * math.expm1(steps * math.log(decay))


def read_time(steps: float, decay: float) -> float:
    """mu^-1(k): when to read the average for what it averages at step k = `steps`; not below k, at most k + decay / (1 - decay)."""
    low, high = steps, steps + decay / (1 - decay)
    for _ in range(60):  # mu rises and lies between; sixty halvings leave rounding
        middle = (low + high) / 2
        low, high = (middle, high) if mean_time(middle, decay) < steps else (low, middle)
    return (low + high) / 2


def epochs_to_record(epochs: int, decay: float | None, epoch_steps: int) -> int:
    """Whole epochs after which a path, read later by its lag, reaches `epochs`; `epochs` itself where nothing is averaged."""
    if decay is None:
        return epochs
    return math.ceil(read_time(epochs * epoch_steps, decay) / epoch_steps - 1e-9)

"""How sure a number is: 95 % intervals."""

import math
from collections.abc import Sequence

from mae.evaluation.outcome import mean_and_std

_QUANTILE = 0.975


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's interval of the mean over seeds; None for fewer than two, which say
    nothing of how far they scatter."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    mean, deviation = mean_and_std(values)
    half = float(stdtrit(len(values) - 1, _QUANTILE)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval (1927) of a share that was observed in n images."""
    from scipy.special import ndtri

    z = float(ndtri(_QUANTILE))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)

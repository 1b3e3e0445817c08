"""Tests of counts against an exact distribution, with the false-alarm rate that all statistical tests here share."""

from collections.abc import Sequence

import torch
from torch import Tensor

FALSE_ALARM = 1e-6  # the chance that a correct program fails one comparison


def fit(observed: Tensor, expected: Tensor) -> float:
    """Return the p-value of Pearson's chi-square for `observed` counts against `expected` ones (same shape and sum).

    Cells that expect fewer than five are merged into one; a count in a cell that expects none gives 0.
    """
    observed, expected = observed.double().flatten(), expected.double().flatten()
    if bool((observed[expected == 0] > 0).any()):
        return 0.0
    small = expected < 5
    observed = torch.cat([observed[~small], observed[small].sum()[None]])
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor(float(len(expected) - 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2)) if freedom > 0 else 1.0


def fit_tokens(tokens: Sequence[int], probabilities: Tensor) -> float:
    """Return the p-value of drawn `tokens` against `probabilities` [V]."""
    return fit(torch.bincount(torch.tensor(tokens), minlength=len(probabilities)), probabilities * len(tokens))


def fit_count(observed: int, expected: float) -> float:
    """Return the two-sided p-value of a Poisson count."""
    rate = torch.tensor(expected, dtype=torch.float64)
    at_most = torch.special.gammaincc(torch.tensor(observed + 1.0, dtype=torch.float64), rate)
    below = torch.special.gammaincc(torch.tensor(float(observed), dtype=torch.float64), rate) if observed else 0.0
    return 2 * min(float(at_most), 1 - float(below))

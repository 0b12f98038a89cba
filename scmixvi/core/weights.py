"""Mixture weights given as numbers: checked once, then carried as logarithms."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_weights_from(weights: Sequence[float] | Tensor, n_components: int) -> Tensor:
    """Turn S given mixture weights into normalised log weights.

    Parameters
    ----------
    weights
        `[S]` numbers, each >= 0, that sum to 1 (within 1e-6; the rounding is divided out).
    n_components
        S, the number of mixture components.

    Returns
    -------
    log_weights: `[S]`, float32; a weight of 0 becomes -inf.

    Raises
    ------
    ValueError
        If the weights are not S finite, nonnegative numbers with sum 1.

    Examples
    --------
    >>> log_weights_from([0.5, 0.25, 0.25], 3).exp()
    tensor([0.5000, 0.2500, 0.2500])
    >>> log_weights_from([0.5, 0.6], 2)
    Traceback (most recent call last):
        ...
    ValueError: mixture weights must sum to 1, but [0.5, 0.6] sums to 1.1.
    """
    try:
        values = torch.as_tensor(weights, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0, 0)
    if values.dim() != 1:
        raise ValueError(
            f"mixture weights must be one number for each of the {n_components} components, "
            f"side by side, but got {weights!r}."
        )
    shown = [round(v, 6) for v in values.tolist()]
    if len(values) != n_components:
        raise ValueError(
            f"mixture weights must be one number for each of the {n_components} components, "
            f"but {len(values)} were given: {shown}."
        )
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ValueError(f"mixture weights must be finite and not negative, but got {shown}.")
    total = values.sum().item()
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(f"mixture weights must sum to 1, but {shown} sums to {total:.6g}.")
    return (values / total).log().float()

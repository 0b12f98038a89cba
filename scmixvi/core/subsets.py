"""Training on a few of many components: which ones a step draws from (Hotti et al. 2024)."""

import torch
from torch import Tensor

from scmixvi._messages import is_whole

TRAINING_ESTIMATORS = ("all", "s2a", "s2s")


def check_estimator(estimator: str, n_drawn: int, n_components: int) -> None:
    """Raise ValueError for an estimator that is unknown, or that S components do not allow.

    Parameters
    ----------
    estimator
        "all", "s2a" or "s2s".
    n_drawn
        A, components drawn from in a step; not looked at for "all".
    n_components
        S.
    """
    if estimator not in TRAINING_ESTIMATORS:
        raise ValueError(
            f"estimator must be one of {list(TRAINING_ESTIMATORS)}, but it is {estimator!r}."
        )
    if estimator == "all":
        return
    if not is_whole(n_drawn) or n_drawn > n_components:
        raise ValueError(
            f"n_drawn must be a whole number from 1 to n_components = {n_components}, "
            f"but it is {n_drawn!r}."
        )


def draw_components(
    n_components: int,
    n_drawn: int,
    log_weights: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Choose A of S components at random, so that their draws may count equally.

    With uniform weights without replacement; with others with replacement, in proportion to
    the weights. Either way each of the A places holds component s with probability
    :math:`\pi_s`, so the mean of any f over the places has expectation
    :math:`\sum_s \pi_s f_s`. With A = S all components come once, in their order, and keep their
    weights.

    Parameters
    ----------
    n_components, n_drawn
        S and A, at most S.
    log_weights
        `[S]`, normalised over S; None is uniform.
    device
        Of the result.

    Returns
    -------
    `[A]`, indices of components.

    Raises
    ------
    ValueError
        If A is not in 1 to S, or the weights are not S numbers.

    References
    ----------
    Hotti et al. 2024, "Efficient mixture learning in black-box variational inference".

    Examples
    --------
    >>> draw_components(3, 3)
    tensor([0, 1, 2])
    >>> len(set(draw_components(300, 5).tolist()))
    5
    >>> draw_components(3, 2, torch.tensor([0.0, 1.0, 0.0]).log())
    tensor([1, 1])
    """
    check_estimator("s2a", n_drawn, n_components)
    if log_weights is not None and log_weights.shape != (n_components,):
        raise ValueError(
            f"log_weights must have shape [S] = ({n_components},) to draw components by, but the "
            f"shape is {tuple(log_weights.shape)}."
        )
    if n_drawn == n_components:
        return torch.arange(n_components, device=device)
    if log_weights is None:
        return torch.randperm(n_components, device=device)[:n_drawn]
    return torch.multinomial(log_weights.exp(), n_drawn, replacement=True).to(device)

r"""Bounds on log p(x) for a mixture of S components, and what they are made of.

Pure functions over tensors. One letter has one meaning in every signature:

L
    importance samples drawn from each component;
S
    mixture components. On `log_q_all` the first S axis says which component the sample was
    *drawn from*, the second which component it is *scored under*;
B
    the batch: cells or images.

`log_lik` is log p(x_b | z_ls), `log_prior` is log p(z_ls), both `[L, S, B]`. `log_q_all` is
`[L, S, S, B]`, entry l, s, j, b is log q_j(z_ls | x_b). All are in nats. `log_weights` holds the
logarithms of the mixture weights, `[S]` or (amortised, one set an input) `[S, B]`, normalised
over S; None means uniform.

The two S axes may differ in length: with many components a step may draw from A < S of them
(Hotti et al. 2024). Draws are then taken to come from components chosen at random in proportion
to their weights (:func:`~scmixvi.core.draw_components`), and count equally (with A = S they come
from all components, in order, and keep their weights): `[L, A, B]` and
`[L, A, S, B]` (S2A, scored under all), or `[L, A, A, B]` without weights (S2S, scored under the
drawn ones alone).

Under mixed precision every sum is done in float32.
"""

import math

import torch
from torch import Tensor

from scmixvi.core.precision import at_least_float32

# What rounding may leave of the logarithm of a sum of weights, in float32, with S in the hundreds.
MAX_LOG_TOTAL = 1e-3


def log_mixture(log_q_all: Tensor, log_weights: Tensor | None = None) -> Tensor:
    r"""Log density of the mixture at every drawn sample.

    .. math:: \log q_\pi(z_{ls} | x) = \log \sum_{j=1}^S \pi_j q_j(z_{ls} | x)

    Parameters
    ----------
    log_q_all
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats.
    log_weights
        `[S]` or `[S, B]`, normalised over S; None is uniform.

    Returns
    -------
    `[L, S, B]`, in nats.

    Raises
    ------
    ValueError
        If a rank or a size does not fit, or the weights do not sum to 1 (looked at where it costs
        little: on the CPU, and not in a training step).

    Examples
    --------
    >>> log_q_all = torch.tensor([[0.2, 0.6], [0.4, 0.8]]).log().reshape(1, 2, 2, 1)
    >>> log_mixture(log_q_all).exp().flatten()
    tensor([0.4000, 0.6000])
    """
    log_q_all, weights = _checked_scores(log_q_all, log_weights)
    if weights is None or log_weights is None:
        return _log_sum(log_q_all, 2) - math.log(log_q_all.shape[2])
    scores = torch.where(weights.isneginf(), weights, log_q_all + weights)
    if not scores.requires_grad:
        check_distribution(log_weights)
    return _log_sum(scores, 2)


def miselbo(
    log_lik: Tensor,
    log_prior: Tensor,
    log_q_all: Tensor,
    log_weights: Tensor | None = None,
    beta: float | Tensor = 1.0,
) -> Tensor:
    r"""Multiple importance sampling ELBO, one draw of it for each input.

    .. math:: \sum_{s=1}^S \pi_s \log \frac1L \sum_{l=1}^L
              \frac{p(x | z_{ls}) p(z_{ls})}{\sum_{j=1}^S \pi_j q_j(z_{ls} | x)}

    With beta = 1 its expectation over the draws z_ls ~ q_s never exceeds log p(x), and it equals
    log p(x) when the mixture is the exact posterior. With 0 < beta < 1 (and L = 1) it never exceeds
    :math:`\beta \log \int p(x | z)^{1/\beta} p(z) dz`, which is at least log p(x).

    Parameters
    ----------
    log_lik, log_prior
        `[L, S, B]`, in nats.
    log_q_all
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats.
    log_weights
        `[S]` or `[S, B]`, normalised over S; None is uniform.
    beta
        Weight of the prior and the mixture density during KL warm-up (Eq. 15). Only for L = 1:
        with L > 1 a weight other than 1 gives a bound of nothing.

    Returns
    -------
    `[B]`, in nats.

    Raises
    ------
    ValueError
        If a rank or a size does not fit, the weights do not sum to 1, or beta is no number in
        [0, 1] or not 1 with L > 1.

    References
    ----------
    Kviman et al. 2022, "Learning with MISELBO: the mixture cookbook", Eq. 4, 6 and 15.

    Examples
    --------
    With one component and one sample it is a draw of the ELBO:

    >>> miselbo(torch.full((1, 1, 1), -7.0), torch.full((1, 1, 1), -2.0),
    ...         torch.full((1, 1, 1, 1), -1.0))
    tensor([-8.])
    """
    log_lik, log_prior = _checked_terms(log_lik, log_prior, log_q_all)
    n_samples = log_lik.shape[0]
    _check_beta(beta)
    if n_samples > 1 and not bool(torch.as_tensor(beta == 1)):
        raise ValueError(
            f"beta must be 1 with L = {n_samples} importance samples (it is {float(beta)}): "
            "a KL weight inside the importance-weighted logarithm bounds nothing. "
            "Use L = 1 while the KL term warms up."
        )
    log_draw_weights = _draw_weights(log_q_all, log_weights)
    log_q = log_mixture(_heard(log_q_all, log_draw_weights), log_weights)
    log_ratio = log_lik + beta * (log_prior - log_q)
    strata = _log_sum(_silenced(log_ratio, log_draw_weights), 0) - math.log(n_samples)
    return _weighted_sum(strata, log_draw_weights)


def siwelbo(
    log_lik: Tensor,
    log_prior: Tensor,
    log_q_all: Tensor,
    log_weights: Tensor | None = None,
) -> Tensor:
    r"""Stratified importance weighted ELBO: the strata are pooled inside the logarithm.

    .. math:: \log \frac1L \sum_{s=1}^S \pi_s \sum_{l=1}^L
              \frac{p(x | z_{ls}) p(z_{ls})}{\sum_{j=1}^S \pi_j q_j(z_{ls} | x)}

    Draw by draw at least :func:`miselbo` (Jensen), and its expectation never exceeds log p(x).

    Parameters
    ----------
    log_lik, log_prior
        `[L, S, B]`, in nats.
    log_q_all
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats.
    log_weights
        `[S]` or `[S, B]`, normalised over S; None is uniform.

    Returns
    -------
    `[B]`, in nats.

    Raises
    ------
    ValueError
        If a rank or a size does not fit, or the weights do not sum to 1.

    References
    ----------
    Morningstar et al. 2021, "Automatic differentiation variational inference with mixtures".

    Examples
    --------
    >>> zeros = torch.zeros(2, 3, 1)
    >>> siwelbo(zeros, zeros, torch.zeros(2, 3, 3, 1)).abs() < 1e-6
    tensor([True])
    """
    log_lik, log_prior = _checked_terms(log_lik, log_prior, log_q_all)
    log_draw_weights = _draw_weights(log_q_all, log_weights)
    log_q = log_mixture(_heard(log_q_all, log_draw_weights), log_weights)
    log_ratio = log_lik + log_prior - log_q
    n_samples, n_drawn = log_ratio.shape[:2]
    if log_draw_weights is None:
        return torch.logsumexp(log_ratio.flatten(0, 1), dim=0) - math.log(n_samples * n_drawn)
    silent = log_draw_weights.isneginf()
    weighted = torch.where(silent, log_draw_weights, log_ratio + log_draw_weights)
    return torch.logsumexp(weighted.flatten(0, 1), dim=0) - math.log(n_samples)


def component_elbos(log_lik: Tensor, log_prior: Tensor, log_q_all: Tensor) -> Tensor:
    r"""ELBO of every component by itself: the right-hand side of Theorem 1.

    .. math:: \frac1L \sum_{l=1}^L \log \frac{p(x | z_{ls}) p(z_{ls})}{q_s(z_{ls} | x)}

    Parameters
    ----------
    log_lik, log_prior
        `[L, S, B]`, in nats.
    log_q_all
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats.

    Returns
    -------
    `[S, B]`, in nats.

    Raises
    ------
    ValueError
        If a rank or a size does not fit, or if the two S axes differ in length.

    Examples
    --------
    >>> log_q_all = torch.tensor([[-1.0, -9.0], [-9.0, -3.0]]).reshape(1, 2, 2, 1)
    >>> component_elbos(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1), log_q_all).flatten()
    tensor([1., 3.])
    """
    log_lik, log_prior = _checked_terms(log_lik, log_prior, log_q_all)
    return (log_lik + log_prior - _own_scores(log_q_all)).mean(dim=0)


def jsd(log_q_all: Tensor, log_weights: Tensor | None = None) -> Tensor:
    r"""Jensen-Shannon divergence of the components, a Monte Carlo estimate for each input.

    .. math:: \sum_{s=1}^S \pi_s \frac1L \sum_{l=1}^L
              \log \frac{q_s(z_{ls} | x)}{\sum_{j=1}^S \pi_j q_j(z_{ls} | x)}

    In expectation between 0 (all components equal) and the entropy of the weights, at most log S
    (no overlap). It is the difference between MISELBO at L = 1 and the weighted
    :func:`component_elbos`, draw by draw (Appendix A).

    Parameters
    ----------
    log_q_all
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats.
    log_weights
        `[S]` or `[S, B]`, normalised over S; None is uniform.

    Returns
    -------
    `[B]`, in nats.

    Raises
    ------
    ValueError
        If a rank or a size does not fit, the two S axes differ in length, or the weights do not sum
        to 1.

    References
    ----------
    Kviman et al. 2022, Eq. 19.

    Examples
    --------
    >>> apart = torch.tensor([[0.0, -99.0], [-99.0, 0.0]]).reshape(1, 2, 2, 1)
    >>> jsd(apart)
    tensor([0.6931])
    """
    log_q_all, _ = _checked_scores(log_q_all, log_weights)
    log_draw_weights = _draw_weights(log_q_all, log_weights)
    log_q = log_mixture(_heard(log_q_all, log_draw_weights), log_weights)
    log_ratio = _own_scores(log_q_all) - log_q
    return _weighted_sum(log_ratio.mean(dim=0), log_draw_weights)


def linear_warmup(epoch: int, n_epochs: int) -> float:
    """KL weight that rises linearly from 0 at epoch 0 to 1 at epoch `n_epochs`, then stays 1.

    Parameters
    ----------
    epoch
        Epochs finished so far.
    n_epochs
        Length of the warm-up; 0 is no warm-up.

    Returns
    -------
    A weight in [0, 1].

    Raises
    ------
    ValueError
        If either number is negative.

    Examples
    --------
    >>> [linear_warmup(epoch, 4) for epoch in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    if epoch < 0 or n_epochs < 0:
        raise ValueError(f"epoch and n_epochs must not be negative, got {epoch} and {n_epochs}.")
    return 1.0 if epoch >= n_epochs else epoch / n_epochs


def can_look_at(tensor: Tensor) -> bool:
    """Whether values can be read without waiting for a GPU or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_beta(beta: float | Tensor) -> None:
    if isinstance(beta, Tensor) and beta.numel() != 1:
        raise ValueError(f"beta must be one number, but its shape is {tuple(beta.shape)}.")
    if isinstance(beta, Tensor) and not can_look_at(beta):
        return
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], but it is {float(beta)}.")


def check_distribution(log_weights: Tensor) -> None:
    """Raise ValueError if weights `[S]` or `[S, B]` on the CPU, not in 16 bits, do not sum to 1."""
    if not can_look_at(log_weights) or log_weights.element_size() < 4 or not log_weights.numel():
        return
    off = torch.logsumexp(log_weights.detach(), dim=0).abs().max()
    if off > MAX_LOG_TOTAL:
        raise ValueError(
            "log_weights must be normalised, but the logarithm of their sum is "
            f"{float(off):.3g} away from 0: take log_weights.log_softmax(0)."
        )


def _checked_scores(log_q_all: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return `log_q_all` and the log weights of the scored components, `[S, 1 or B]` or None."""
    if log_q_all.dim() != 4:
        raise ValueError(
            "log_q_all must have four axes [L, S drawn from, S scored under, B], "
            f"but its shape is {tuple(log_q_all.shape)}."
        )
    n_scored, n_inputs = log_q_all.shape[2:]
    log_q_all = at_least_float32(log_q_all)
    if log_weights is None:
        return log_q_all, None
    if tuple(log_weights.shape) not in ((n_scored,), (n_scored, n_inputs)):
        raise ValueError(
            f"log_weights must have shape [S] = ({n_scored},) or [S, B] = ({n_scored}, {n_inputs})"
            f" to fit log_q_all, but its shape is {tuple(log_weights.shape)}."
        )
    if log_weights.dim() == 1:
        log_weights = log_weights.unsqueeze(-1)
    return log_q_all, at_least_float32(log_weights)


def _checked_terms(log_lik: Tensor, log_prior: Tensor, log_q_all: Tensor) -> tuple[Tensor, Tensor]:
    expected = tuple(log_q_all.shape[:2]) + tuple(log_q_all.shape[3:])
    for name, term in (("log_lik", log_lik), ("log_prior", log_prior)):
        if log_q_all.dim() != 4 or tuple(term.shape) != expected:
            raise ValueError(
                f"{name} must have shape [L, S, B] and log_q_all [L, S, S, B] with the same "
                f"L, S and B, but their shapes are {tuple(term.shape)} and "
                f"{tuple(log_q_all.shape)}."
            )
    return at_least_float32(log_lik), at_least_float32(log_prior)


def _draw_weights(log_q_all: Tensor, log_weights: Tensor | None) -> Tensor | None:
    """Log weights of the components drawn from, `[S drawn, 1 or B]`; None if they count equally."""
    n_drawn, n_scored = log_q_all.shape[1:3]
    return _checked_scores(log_q_all, log_weights)[1] if n_drawn == n_scored else None


def _heard(log_q_all: Tensor, log_draw_weights: Tensor | None) -> Tensor:
    """Scores, 0 for draws of a component of weight 0.

    Every other component may give such a draw no density at all, and the logarithm of a sum of
    zeros has no gradient, not even for a value that is silenced later.
    """
    if log_draw_weights is None:
        return log_q_all
    return torch.where(log_draw_weights.isneginf().unsqueeze(1), 0.0, log_q_all)


def _own_scores(log_q_all: Tensor) -> Tensor:
    """Every sample's score under the component it was drawn from, `[L, S, B]`."""
    if log_q_all.shape[1] != log_q_all.shape[2]:
        raise ValueError(
            "this needs every drawn component scored once (S drawn from = S scored under), "
            f"but log_q_all has shape {tuple(log_q_all.shape)}."
        )
    return at_least_float32(log_q_all).diagonal(dim1=1, dim2=2).movedim(-1, 1)


def _log_sum(terms: Tensor, axis: int) -> Tensor:
    """Log of the sum of exponentials over an axis; one term is its own, with no exponential."""
    return terms.squeeze(axis) if terms.shape[axis] == 1 else torch.logsumexp(terms, dim=axis)


def _silenced(values: Tensor, log_weights: Tensor | None) -> Tensor:
    """Values `[..., S, B]`, 0 and without a gradient where the weight is 0, whatever they were."""
    if log_weights is None:
        return values
    return torch.where(log_weights.isneginf(), torch.zeros_like(values), values)


def _weighted_sum(values: Tensor, log_weights: Tensor | None) -> Tensor:
    """Sum over S of weight times value, `[S, B] -> [B]`; a weight of 0 silences any value."""
    if log_weights is None:
        return values.mean(dim=0)
    return (log_weights.exp() * _silenced(values, log_weights)).sum(dim=0)

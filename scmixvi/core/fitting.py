r"""Fitting a posterior to each input by gradient ascent on its own MISELBO.

An encoder answers for all inputs at once, and what it says of one is not the best that its family
could say. With the model as it is, gradient steps on the parameters of every input's own posterior
close this amortisation gap, and leave the gap of the family.

Sources: Hjelm et al. 2016, "Iterative refinement of the approximate posterior for directed belief
networks"; Cremer et al. 2018, "Inference suboptimality in variational autoencoders".
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from scmixvi.core.objectives import miselbo
from scmixvi.core.posterior import MixturePosterior, Stage

# Of the first step, where the prior has a standard deviation of 1.
LEARNING_RATE = 0.06

LogJoint = Callable[[Tensor], Tensor]
"""From z `[1, S, B, D]` to log p(x, z) `[1, S, B]`, in nats, with a gradient."""


def fit_posterior(
    posterior: Callable[[], MixturePosterior],
    parameters: Sequence[Tensor],
    log_joint: LogJoint,
    n_steps: int,
    learning_rate: float = LEARNING_RATE,
) -> None:
    """Maximise the MISELBO of every input over parameters of its own, in place, by Adam.

    Inputs do not mix: the objective is the sum of their bounds, and Adam scales every number by
    itself. The learning rate falls linearly to 0, so that the noise of the draws averages out.

    Parameters
    ----------
    posterior
        Makes the posterior, of one level, from the parameters as they are.
    parameters
        Leaves that require gradients; every number belongs to one input.
    log_joint
        From z `[1, S, B, D]` to log p(x, z) `[1, S, B]`, in nats. The model's own weights need not
        require gradients, and a step is faster where they do not.
    n_steps
        Steps, each with one draw of every component.
    learning_rate
        Of the first step.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=n_steps)
    for _ in range(n_steps):
        fitted = posterior()
        (z,), log_q_all = fitted.sample_stratified()
        log_p = log_joint(z)
        bounds = miselbo(log_p, torch.zeros_like(log_p), log_q_all, fitted.log_weights)
        optimizer.zero_grad()
        (-bounds.sum()).backward()
        optimizer.step()
        schedule.step()


def fitted_gaussians(
    loc: Tensor,
    scale: Tensor,
    log_joint: LogJoint,
    n_steps: int,
    log_weights: Tensor | None = None,
    learning_rate: float = LEARNING_RATE,
) -> tuple[Tensor, Tensor]:
    """A mixture of diagonal Gaussians for every input, by :func:`fit_posterior`.

    Parameters
    ----------
    loc, scale
        Where it starts, means and standard deviations `[S, B, D]`.
    log_joint, n_steps, learning_rate
        As there.
    log_weights
        `[S]` or `[S, B]`, normalised over S, which stay; None is uniform.

    Returns
    -------
    Means and standard deviations, `[S, B, D]` each, without gradients.

    Examples
    --------
    The posterior of a Gaussian model, N(1, 0.5), from far away:

    >>> def log_joint(z):
    ...     return -z.square().sum(-1)/2 - (2 - z).square().sum(-1)/2
    >>> loc, scale = fitted_gaussians(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), log_joint, 500)
    >>> round(loc.item(), 1), round(scale.square().item(), 1)
    (1.0, 0.5)
    """
    loc = loc.detach().clone().requires_grad_()
    log_scale = scale.detach().log().requires_grad_()

    def posterior() -> MixturePosterior:
        normal = Normal(loc, log_scale.exp(), validate_args=False)
        base = Independent(normal, 1, validate_args=False)
        return MixturePosterior([Stage(lambda: base)], log_weights)

    fit_posterior(posterior, [loc, log_scale], log_joint, n_steps, learning_rate)
    return loc.detach(), log_scale.detach().exp()

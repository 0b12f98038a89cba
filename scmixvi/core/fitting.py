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

# The highest, where the prior has a standard deviation of 1, and the steps until it is reached.
LEARNING_RATE, WARMUP_STEPS = 0.06, 10

LogJoint = Callable[[Tensor], Tensor]
"""From z `[1, S, B, D]` to log p(x, z) `[1, S, B]`, in nats, with a gradient."""


def fit_posterior(
    posterior: Callable[..., MixturePosterior],
    parameters: Sequence[Tensor],
    log_joint: LogJoint,
    n_steps: int,
    learning_rate: float = LEARNING_RATE,
) -> None:
    r"""Maximise the MISELBO of every input over parameters of its own, in place, by Adam.

    Inputs do not mix: the objective is the sum of their bounds, and Adam scales every number by
    itself. The gradient is that of the path alone: draws carry it, the densities under which they
    are scored do not. What is left out has expectation 0, for

    .. math:: \sum_s \pi_s E_{q_s} \nabla \log q_\pi(z | x) = \nabla \int q_\pi(z | x) dz = 0

    and without it no noise is left where q is the exact posterior. The learning rate rises over the
    first ten steps and falls linearly to 0.

    Parameters
    ----------
    posterior
        From the parameters, each an argument, to the posterior, of one level. Weights, if any, are
        constants.
    parameters
        Leaves that require gradients; every number belongs to one input. What has no finite
        gradient stays where it is.
    log_joint
        From z `[1, S, B, D]` to log p(x, z) `[1, S, B]`, in nats. The model's own weights get no
        gradient, and a step is faster where they do not require one.
    n_steps
        Steps, each with one draw of every component.
    learning_rate
        The highest.

    References
    ----------
    Roeder et al. 2017, "Sticking the landing".
    """

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / max(1, n_steps))

    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(n_steps):
            (z,), _ = posterior(*parameters).sample_stratified()
            constant = posterior(*(p.detach() for p in parameters))
            log_p = log_joint(z)
            scores = constant.log_prob_all((z,))
            bounds = miselbo(log_p, torch.zeros_like(log_p), scores, constant.log_weights)
            optimizer.zero_grad()
            (-bounds.sum()).backward(inputs=list(parameters))
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
            scheduler.step()


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
    with torch.inference_mode(False):
        loc, log_scale = loc.detach().clone(), scale.detach().clone().log()

        def posterior(loc: Tensor, log_scale: Tensor) -> MixturePosterior:
            normal = Normal(loc, log_scale.exp(), validate_args=False)
            base = Independent(normal, 1, validate_args=False)
            return MixturePosterior([Stage(lambda: base)], log_weights)

        parameters = [loc.requires_grad_(), log_scale.requires_grad_()]
        fit_posterior(posterior, parameters, log_joint, n_steps, learning_rate)
        return loc.detach(), log_scale.detach().exp()

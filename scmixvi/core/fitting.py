r"""Fitting a posterior to each input by gradient ascent on its own MISELBO.

An encoder answers for all inputs at once, and what it says of one is not the best that its family
could say. With the model as it is, gradient steps on the parameters of every input's own posterior
close this amortisation gap, and leave the gap of the family.

Sources: Hjelm et al. 2016, "Iterative refinement of the approximate posterior for directed belief
networks"; Cremer et al. 2018, "Inference suboptimality in variational autoencoders".
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from scmixvi._messages import check_whole
from scmixvi.core.objectives import miselbo
from scmixvi.core.posterior import MixturePosterior, Stage, is_normal


class Ascent(NamedTuple):
    """How steps are taken: Adam's settings, where the prior has a standard deviation of 1.

    Every number is fitted to one input by a few dozen noisy gradients. The short memory of Adam's
    moments suits that: on cells the defaults come in 25 steps about as far as Adam's own betas in
    50, and in 50 nearly as far as those in 100 (`python -m benchmarks.refinement_steps`).

    Parameters
    ----------
    learning_rate
        The highest. From there it falls linearly, and would be 0 one step after the last.
    betas
        Of the running means of the gradient and of its square.
    warmup_steps
        Steps in which the rate rises to the highest.
    """

    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_steps: int = 3

    def rate(self, step: int, n_steps: int) -> float:
        """Share of the highest rate at a step, counted from 0."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * (1 - step / max(1, n_steps))


ASCENT = Ascent()

LogJoint = Callable[[Tensor], Tensor]
"""From z `[1, S, B, D]` to log p(x, z) `[1, S, B]`, in nats, with a gradient."""


def fit_posterior(
    posterior: Callable[..., MixturePosterior],
    parameters: Sequence[Tensor],
    log_joint: LogJoint,
    n_steps: int,
    ascent: Ascent = ASCENT,
) -> None:
    r"""Maximise the MISELBO of every input over parameters of its own, in place, by Adam.

    Inputs do not mix: the objective is the sum of their bounds, and Adam scales every number by
    itself. The gradient is that of the path alone: draws carry it, the densities under which they
    are scored do not. What is left out has expectation 0, for

    .. math:: \sum_s \pi_s E_{q_s} \nabla \log q_\pi(z | x) = \nabla \int q_\pi(z | x) dz = 0

    and without it no noise is left where q is the exact posterior.

    Parameters
    ----------
    posterior
        From the parameters, each an argument, to the posterior, of one level. Weights, if any, are
        constants.
    parameters
        Leaves that require gradients; every number belongs to one input. A gradient that is not
        finite counts as 0.
    log_joint
        From z `[1, S, B, D]` to log p(x, z) `[1, S, B]`, in nats. The model's own weights get no
        gradient, and a step is faster where they do not require one.
    n_steps
        Steps, each with one draw of every component.
    ascent
        How they are taken.

    References
    ----------
    Roeder et al. 2017, "Sticking the landing".
    """

    def bounds() -> Tensor:
        (z,), _ = posterior(*parameters).sample_stratified()
        constant = posterior(*(p.detach() for p in parameters))
        return _bounds(log_joint(z), constant.log_prob_all((z,)), constant.log_weights)

    _climb(bounds, parameters, n_steps, ascent)


def refined_posterior(
    posterior: MixturePosterior,
    log_joint: Callable[..., Tensor],
    n_steps: int,
    ascent: Ascent = ASCENT,
) -> MixturePosterior:
    r"""A posterior of any levels and flows after gradient steps of every input's own.

    Every input b gets numbers of its own for component s of each level h, found as
    :func:`fit_posterior` finds them, from 0:

    .. math:: q_s(z^h | z^{>h}, x_b) = N(\mu_s^h(z^{>h}, x_b) + a_{sb}^h,
              (\sigma_s^h(z^{>h}, x_b))^2 \exp(2 c_{sb}^h))

    and what is above the level moves its Gaussians as before. Flows and weights stay.
    What is returned runs the levels and flows of `posterior` when it is drawn from.

    Parameters
    ----------
    posterior
        Where it starts. Its tensors are constants, and not made in inference mode.
    log_joint
        From latents `[1, S, B, D]`, one argument a level, top first, to log p(x, z) `[1, S, B]`, in
        nats.
    n_steps, ascent
        As in :func:`fit_posterior`.

    Raises
    ------
    ValueError
        If a level is not one of Gaussians with diagonal covariance, or `n_steps` is no whole number
        of at least 0.
    """
    with torch.no_grad():
        zs, _ = posterior.sample_stratified()
    with torch.inference_mode(False):
        offsets = [Offset(*torch.zeros(2, *z.shape[1:]).to(z)) for z in zs]
        parameters = [number.requires_grad_() for offset in offsets for number in offset]
    climbing = _moved(posterior, offsets, by_path=True)

    def bounds() -> Tensor:
        zs, log_q_all = climbing.sample_stratified()
        return _bounds(log_joint(*zs), log_q_all, climbing.log_weights)

    _climb(bounds, parameters, n_steps, ascent)
    return _moved(posterior, [Offset(*(number.detach() for number in each)) for each in offsets])


def fitted_gaussians(
    loc: Tensor,
    scale: Tensor,
    log_joint: LogJoint,
    n_steps: int,
    log_weights: Tensor | None = None,
    ascent: Ascent = ASCENT,
) -> tuple[Tensor, Tensor]:
    """A mixture of diagonal Gaussians for every input, by :func:`fit_posterior`.

    Parameters
    ----------
    loc, scale
        Where it starts, means and standard deviations `[S, B, D]`.
    log_joint, n_steps, ascent
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
        normal = Normal(loc.detach().clone(), scale.detach().clone(), validate_args=False)
        start = Independent(normal, 1, validate_args=False)
        posterior = MixturePosterior([Stage(lambda: start)], log_weights)
        refined = refined_posterior(posterior, log_joint, n_steps, ascent)
        found = refined.stages[0].conditional()
        return found.mean, found.stddev


class Offset(NamedTuple):
    """What is added to means, and to logarithms of standard deviations, `[S, B, D]` each."""

    loc: Tensor
    log_scale: Tensor

    def applied_to(self, base: Normal) -> Normal:
        """The moved Gaussians."""
        scale = base.scale * self.log_scale.exp()
        return Normal(base.loc + self.loc, scale, validate_args=False)


class _ByPath(Normal):
    """Moved Gaussians whose draws carry a gradient to the offset, and whose densities do not."""

    def __init__(self, base: Normal, offset: Offset) -> None:
        drawn_from = offset.applied_to(base)
        super().__init__(drawn_from.loc, drawn_from.scale, validate_args=False)
        self.scored_under = Offset(offset.loc.detach(), offset.log_scale.detach()).applied_to(base)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.scored_under.log_prob(value)


def _moved(
    posterior: MixturePosterior, offsets: Sequence[Offset], by_path: bool = False
) -> MixturePosterior:
    """The posterior with every level's Gaussians moved."""
    make = _ByPath if by_path else (lambda base, offset: offset.applied_to(base))

    def conditional(stage: Stage, offset: Offset, *above: Tensor) -> Independent:
        base = stage.conditional(*above)
        if not is_normal(base):
            raise ValueError(
                "every level of a posterior that is to be refined must be Independent(Normal(...), "
                f"1), Gaussians with diagonal covariance, but there is {base}."
            )
        return Independent(make(base.base_dist, offset), 1, validate_args=False)

    stages = [
        Stage(partial(conditional, stage, offset), stage.flow)
        for stage, offset in zip(posterior.stages, offsets, strict=True)
    ]
    return MixturePosterior(stages, posterior.log_weights)


def _bounds(log_p: Tensor, log_q_all: Tensor, log_weights: Tensor | None) -> Tensor:
    return miselbo(log_p, torch.zeros_like(log_p), log_q_all, log_weights)


def _climb(
    bounds: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    n_steps: int,
    ascent: Ascent,
) -> None:
    """Steps of :func:`fit_posterior`; `bounds` are those of fresh draws, `[B]`."""
    check_whole("n_steps", n_steps, least=0)

    optimizer = torch.optim.Adam(parameters, lr=ascent.learning_rate, betas=ascent.betas)
    rate = partial(ascent.rate, n_steps=n_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(n_steps):
            loss = -bounds().sum()
            optimizer.zero_grad()
            loss.backward(inputs=list(parameters))
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
            scheduler.step()

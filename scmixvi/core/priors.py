"""Priors over latents: standard normal, learned Gaussian conditionals, VampPrior, and their chain.

A prior is a module that, called, builds a value to ask densities and samples of: what is the same
for every latent (the densities of the VampPrior's pseudo-inputs) is computed once a call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from scmixvi._messages import raise_failed
from scmixvi.core.objectives import check_distribution
from scmixvi.core.precision import at_least_float32

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -6.0, 2.0


def diagonal_normal(parameters: Tensor) -> Independent:
    """Gaussian with diagonal covariance from a network's output.

    Parameters
    ----------
    parameters
        `[..., 2 * D]`: means, then log-variances, which are clamped to [-6, 2].

    Returns
    -------
    A distribution with batch `[...]` and event `[D]`, in float32 at least.
    """
    mean, log_variance = at_least_float32(parameters).chunk(2, dim=-1)
    scale = (0.5 * log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)).exp()
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


class GaussianMixture(Distribution):
    r"""Mixture of N Gaussians with diagonal covariance: :math:`\sum_n w_n N(z; \mu_n, \sigma_n^2)`.

    The density of many points under all N components is one matrix product of the expanded
    squares, in float64 and around the mean of the means, for its terms are large and cancel.

    Parameters
    ----------
    mean, variance
        `[N, D]`.
    log_weights
        `[N]`, normalised.
    """

    arg_constraints: ClassVar[dict] = {}
    has_rsample = False

    def __init__(self, mean: Tensor, variance: Tensor, log_weights: Tensor) -> None:
        self._mean, self._variance, self._log_weights = mean, variance, log_weights
        super().__init__(torch.Size(), mean.shape[-1:], validate_args=False)
        self._centre = mean.detach().double().mean(0)  # any does, and has no gradient
        mean, variance = mean.double() - self._centre, variance.double()
        norm = (mean.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        self._offset = log_weights.double() - 0.5 * norm
        self._slopes = torch.cat([mean, -0.5 * torch.ones_like(mean)], -1) / variance.repeat(1, 2)

    @property
    def floats_per_row(self) -> int:
        """About how many float32 numbers one point takes while it is scored."""
        return 4 * len(self._offset)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density at `[..., D]`: `[...]`, in nats."""
        points = value.double() - self._centre
        squares = torch.cat([points, points.square()], -1)
        scores = squares.reshape(-1, squares.shape[-1]) @ self._slopes.T
        scores = (scores + self._offset).to(value.dtype)
        return torch.logsumexp(scores, dim=-1).reshape(value.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw `[*sample_shape, D]`."""
        drawn = torch.distributions.Categorical(logits=self._log_weights).sample(sample_shape)
        return torch.normal(self._mean[drawn], self._variance[drawn].sqrt())


class Level(nn.Module):
    """A module for one level of latents, of `n_latent` (D) dimensions."""

    n_latent: int


class StandardNormal(Level):
    """N(0, I) over `[D]`.

    Parameters
    ----------
    n_latent
        D, dimensions of the level.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.register_buffer("parameters_", torch.zeros(2 * n_latent), persistent=False)

    def forward(self, *above: Tensor) -> Independent:
        """Return the distribution, event `[D]`: batch `[]`, or that of levels above, `[...]`."""
        found = diagonal_normal(self.get_buffer("parameters_"))
        return found.expand(above[-1].shape[:-1]) if above else found


class GaussianConditional(Level):
    """Learned p(z | level above): a Gaussian with diagonal covariance.

    Parameters
    ----------
    net
        Maps the level above, `[..., D above]`, to means and log-variances, `[..., 2 * D]`.
    n_latent
        D, dimensions of the level itself.

    Raises
    ------
    ValueError
        When called, if the network fails on the level above, or gives anything but 2 * D numbers
        for each of its latents.
    """

    def __init__(self, net: nn.Module, n_latent: int) -> None:
        super().__init__()
        self.net, self.n_latent = net, n_latent

    def forward(self, *above: Tensor) -> Independent:
        """Return the distribution given the levels above, top first: batch `[...]`, event `[D]`."""
        try:
            parameters = self.net(above[-1])
        except RuntimeError as error:
            raise_failed(
                "the network of a GaussianConditional failed on the latents of the level above, "
                f"D = {above[-1].shape[-1]}: if it takes another number, give it as many inputs",
                error,
            )
        wanted = (*above[-1].shape[:-1], 2 * self.n_latent)
        found = (
            tuple(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
        )
        if found != wanted:
            raise ValueError(
                "the network of a GaussianConditional must give means and log-variances, "
                f"2 * n_latent = {2 * self.n_latent} numbers for each of the latents, {wanted}, "
                f"but it gives {found}."
            )
        return diagonal_normal(parameters)


class VampPrior(Level):
    r"""Mixture of the posterior's own densities at K learned pseudo-inputs, all S components each.

    .. math:: p(z) = \frac1K \sum_{k=1}^K \sum_{s=1}^S \pi_s q_s(z | u_k)

    One prior, shared by all components: with one prior a component they would not have the same
    target.

    Parameters
    ----------
    encoder
        The posterior's top level: `encoder(u)()` is a Gaussian with batch `[S, K]`, event `[D]`.
        A flow on that level is left out of the prior.
    pseudo_inputs
        Called without arguments it returns K inputs u, `[K, ...]`.
    n_latent
        D.
    log_weights
        `[S]`, normalised over S; None is uniform.

    Raises
    ------
    ValueError
        If the weights are not normalised, or the encoder is of a level below the top (has
        `n_above`); when called, if the encoder fails on the pseudo-inputs, or the weights or D are
        not the encoder's.

    References
    ----------
    Tomczak & Welling 2018, "VAE with a VampPrior"; Kviman et al. 2022, Eq. 8.
    """

    log_weights: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        pseudo_inputs: nn.Module,
        n_latent: int,
        log_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if log_weights is not None:
            check_distribution(log_weights)
        if getattr(encoder, "n_above", 0):
            raise ValueError(
                "the encoder of a VampPrior must be the posterior's top level, but "
                f"{type(encoder).__name__} needs the level above it: pass the top one, and put a "
                "GaussianConditional on the levels below."
            )
        self.encoder, self.pseudo_inputs, self.n_latent = encoder, pseudo_inputs, n_latent
        self.register_buffer("log_weights", log_weights, persistent=False)

    def forward(self) -> GaussianMixture:
        """Encode the pseudo-inputs and return the mixture of K * S Gaussians over `[D]`."""
        inputs = self.pseudo_inputs()
        try:
            base = self.encoder(inputs)()
        except (RuntimeError, ValueError) as error:
            raise_failed(
                f"the encoder of a VampPrior failed on its pseudo-inputs, {tuple(inputs.shape)} "
                "with K first: if it takes others, make both for inputs of one size",
                error,
            )
        if tuple(base.event_shape) != (self.n_latent,):
            raise ValueError(
                f"n_latent (D) of a VampPrior is {self.n_latent}, but its encoder's Gaussians are "
                f"over {tuple(base.event_shape)}: give it the posterior's own top level."
            )
        n_components, n_pseudo = base.batch_shape
        weights = base.mean.new_full((n_components,), -math.log(n_components))
        if self.log_weights is not None:
            weights = self.log_weights
            if weights.shape != (n_components,):
                raise ValueError(
                    f"log_weights of a VampPrior must have shape [S] = ({n_components},), as its "
                    f"encoder has components, but the shape is {tuple(weights.shape)}."
                )
        joint = (weights - math.log(n_pseudo)).repeat_interleave(n_pseudo)
        return GaussianMixture(base.mean.flatten(0, 1), base.variance.flatten(0, 1), joint)


@dataclass(frozen=True)
class Chain:
    r"""The joint density :math:`p(z^H) \prod_{h<H} p(z^h | z^{>h})` of all levels.

    Parameters
    ----------
    top
        Distribution over the top level, event `[D]`.
    conditionals
        One a level below; called with the levels above, each returns a distribution over `[D]`.
    """

    top: Distribution
    conditionals: tuple[Callable[..., Distribution], ...] = ()

    @property
    def floats_per_row(self) -> int:
        """About how many float32 numbers one draw of the latents takes while it is scored."""
        return int(getattr(self.top, "floats_per_row", 0))

    def log_prob(self, zs: Sequence[Tensor]) -> Tensor:
        """Log density of latents, one tensor `[..., D]` a level, top first: `[...]`, in nats."""
        total = self.top.log_prob(zs[0])
        for h, conditional in enumerate(self.conditionals, start=1):
            total = total + conditional(*zs[:h]).log_prob(zs[h])
        return total

    @torch.no_grad()
    def sample(self, n: int) -> tuple[Tensor, ...]:
        """Draw n latents, `[n, D]` a level, top first."""
        zs: tuple[Tensor, ...] = (self.top.sample(torch.Size([n])),)
        for conditional in self.conditionals:
            zs = (*zs, conditional(*zs).sample())
        return zs


class Prior(nn.Module):
    """The prior over all levels: a top and, below it, conditionals.

    Parameters
    ----------
    top
        Called without arguments it returns a distribution over the top level's `[D]`; has
        `n_latent`. For example :class:`StandardNormal` or :class:`VampPrior`.
    conditionals
        One a level below, such as :class:`GaussianConditional`; each has `n_latent`. Below the
        top a :class:`StandardNormal` is one that does not depend on the levels above.

    Raises
    ------
    ValueError
        If the top is a :class:`GaussianConditional`, or a level below it a :class:`VampPrior`.
    """

    def __init__(self, top: Level, *conditionals: Level) -> None:
        super().__init__()
        if isinstance(top, GaussianConditional):
            raise ValueError(
                "the top level of a Prior has no level above it, which a GaussianConditional "
                "needs: put a StandardNormal or a VampPrior first."
            )
        if any(isinstance(level, VampPrior) for level in conditionals):
            raise ValueError(
                "a VampPrior stands on the top level of a Prior alone, for its encoder is the "
                "posterior's top level: put it first, and a GaussianConditional on each level "
                "below."
            )
        self.top, self.conditionals = top, nn.ModuleList(conditionals)
        self.latent_sizes = tuple(level.n_latent for level in (top, *conditionals))

    def forward(self) -> Chain:
        """Build the joint density; a VampPrior encodes its pseudo-inputs here, once."""
        return Chain(self.top(), tuple(self.conditionals))

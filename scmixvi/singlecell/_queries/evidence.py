r"""The evidence of every input by an adapted proposal: log p(x) without trusting an encoder.

An importance-sampled log p(x) is a lower bound in expectation, and the worse the proposal the
further below. Models with different encoders are therefore not comparable by their own
encoders' draws. Here every input gets a proposal of its own, made by adaptive importance sampling
(population Monte Carlo with matched moments, Cappé et al. 2008; the weights are tempered where
they are too uneven, as in Koblents and Míguez 2015): a Student distribution with full covariance,
whose mean and covariance are the weighted ones of the last round's draws.

The estimate then takes fresh draws from that and, as a defence, some from the encoder, each
weighted by the density of the two together (Eq. 2 of the paper), so that its expectation is p(x).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import MultivariateStudentT
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn

from scmixvi.singlecell._parts.cell_refinement import refined
from scmixvi.singlecell._parts.distributions import MixtureOfNormals, with_library

N_ROUNDS, N_DRAWS, N_FINAL = 16, 400, 1600
# Gradient steps of a cell's own posterior, where its proposal starts.
START_STEPS = 100
DEGREES_OF_FREEDOM, ENCODER_SHARE, ENOUGH = 8.0, 0.1, 0.2
SMALLEST_VARIANCE = 1e-6

EncoderDraws = Callable[[int], Tensor]
LogDensities = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From z `[n, B, D]` to log p(x, z) and the encoder's log q(z | x), `[n, B]` each."""


class Evidence(NamedTuple):
    """Of every input, `[B]`.

    Parameters
    ----------
    log_likelihood
        Estimate of log p(x), nats.
    effective
        Effective sample size as a share of the draws, 0 to 1.
    still_rising
        The estimate minus the mean of those from ten times fewer draws, nats: near 0 where more
        draws would not change it.
    """

    log_likelihood: Tensor
    effective: Tensor
    still_rising: Tensor


def variational_gaps(
    module: nn.Module,
    tensors: dict[str, Tensor],
    n_samples: int,
    n_refinement_steps: int = 0,
    **sizes: int,
) -> dict[str, Tensor]:
    """Log p(x), MISELBO and the gap between them for every cell of a minibatch.

    Parameters
    ----------
    module
        A :class:`scmixvi.singlecell.MixtureVAE`.
    tensors
        A minibatch of n cells.
    n_samples
        Draws a cell for MISELBO, spread evenly over the components.
    n_refinement_steps
        Gradient steps of each cell's own posterior before that.
    **sizes
        Passed on to :func:`evidence`.

    Returns
    -------
    `log_likelihood`, `miselbo`, `gap`, `effective_share` and `still_rising`, `[n]` each.
    """
    encoded = module._encoded_whole(tensors, n_refinement_steps)
    found = cell_evidence(module, tensors, **sizes)
    per_component = -(-n_samples // module.n_components)
    ratios = module._log_ratios(tensors, encoded, per_component)
    by_component = sum(log_ratio.sum(0) for log_ratio, _ in ratios) / per_component
    bound = (encoded[MODULE_KEYS.QZ_KEY].c_log_weights.T.exp() * by_component).sum(0)
    return {
        "log_likelihood": found.log_likelihood,
        "miselbo": bound,
        "gap": found.log_likelihood - bound,
        "effective_share": found.effective,
        "still_rising": found.still_rising,
    }


def started(
    module: nn.Module, tensors: dict[str, Tensor], n_steps: int = START_STEPS
) -> tuple[dict[str, Any], MixtureOfNormals]:
    """What inference gives, and where proposals start: at the encoders and refined, half and half.

    Each may lie where the other does not find the mass of a cell. It is q(z | x), or q(z, l | x)
    where library sizes are latent.
    """
    encoded = module._encoded_whole(tensors)
    own = with_library(encoded[MODULE_KEYS.QZ_KEY], encoded[MODULE_KEYS.QL_KEY])
    q = MixtureOfNormals.joined([own, refined(module, tensors, n_steps, True)], dim=1)
    q.c_log_weights = q.c_log_weights - math.log(2)
    return encoded, q


def cell_evidence(
    module: nn.Module, tensors: dict[str, Tensor], n_steps: int = START_STEPS, **sizes: int
) -> Evidence:
    """:func:`evidence` of every cell of a minibatch, :func:`started` with so many steps."""
    return evidence(*cell_densities(module, tensors, n_steps), **sizes)


def posterior_draws(
    module: nn.Module, tensors: dict[str, Tensor], n_samples: int, **sizes: int
) -> tuple[Tensor, Tensor]:
    """Draws of the exact posterior of every cell, by resampling :func:`weighted_draws`.

    Parameters
    ----------
    module, tensors
        As in :func:`variational_gaps`.
    n_samples
        Draws a cell.
    **sizes
        Passed on to :func:`weighted_draws`.

    Returns
    -------
    u before a logistic-normal transformation, `[n_samples, n, D]`, with log l last where library
    sizes are latent, and the share of the draws to choose from that count, `[n]`.
    """
    state, log_w = weighted_draws(*cell_densities(module, tensors), **sizes)
    return resampled(state, log_w, n_samples), effective_draws(log_w) / len(log_w)


def resampled(z: Tensor, log_w: Tensor, n_samples: int) -> Tensor:
    """Some of the draws `[n, B, D]` by their log weights `[n, B]`: `[n_samples, B, D]`."""
    chosen = torch.multinomial(log_w.softmax(0).T, n_samples, replacement=True).T
    return z.gather(0, chosen.unsqueeze(-1).expand(-1, -1, z.shape[-1]))


def cell_densities(
    module: nn.Module, tensors: dict[str, Tensor], n_steps: int = START_STEPS
) -> tuple[LogDensities, EncoderDraws]:
    """What :func:`weighted_draws` takes for the cells of a minibatch, :func:`started` so far."""
    encoded, q = started(module, tensors, n_steps)

    def log_densities(state: Tensor) -> tuple[Tensor, Tensor]:
        return module._log_joint(tensors, encoded, state), q.log_prob(state).squeeze(-1)

    return log_densities, lambda n: q.sample((n,))


def evidence(log_densities: LogDensities, encoder_draws: EncoderDraws, **sizes: int) -> Evidence:
    """Log p(x) of every input by :func:`weighted_draws`, whose arguments it takes."""
    _, log_w = weighted_draws(log_densities, encoder_draws, **sizes)
    value = _log_mean(log_w)
    tenths = torch.stack([_log_mean(part) for part in log_w.chunk(10)])
    return Evidence(value, effective_draws(log_w) / len(log_w), value - tenths.mean(0))


def weighted_draws(
    log_densities: LogDensities,
    encoder_draws: EncoderDraws,
    n_rounds: int = N_ROUNDS,
    n_draws: int = N_DRAWS,
    n_final: int = N_FINAL,
) -> tuple[Tensor, Tensor]:
    """Adapt a proposal to every input, then draw from it.

    Parameters
    ----------
    log_densities
        The model's and the encoder's.
    encoder_draws
        From n to draws `[n, B, D]` of the encoder's q(z | x).
    n_rounds, n_draws
        Rounds of adaptation, at most, and draws an input in each. It ends when a fifth of the
        draws of every input is effective.
    n_final
        Draws an input, a multiple of 10.

    Returns
    -------
    Draws `[n_final, B, D]` and their log weights `[n_final, B]`, log p(x, z) minus the log density
    that they were drawn from: weighted, they are the exact posterior's.
    """
    z = encoder_draws(n_draws)
    log_p, log_q = log_densities(z)
    proposal = _matched(z, log_p - log_q)
    for _ in range(n_rounds):
        z = proposal.sample((n_draws,)).to(z)
        log_p, _ = log_densities(z)
        log_w = log_p - proposal.log_prob(z.double())
        proposal = _matched(z, log_w)
        if bool((effective_draws(log_w) >= ENOUGH * n_draws).all()):
            break
    n_encoder = round(ENCODER_SHARE * n_final)
    z = torch.cat([proposal.sample((n_final - n_encoder,)).to(z), encoder_draws(n_encoder)])
    z = z[torch.randperm(n_final)]
    log_p, log_q = log_densities(z)
    log_both = torch.logaddexp(
        proposal.log_prob(z.double()) + math.log1p(-ENCODER_SHARE),
        log_q.double() + math.log(ENCODER_SHARE),
    )
    return z, log_p.double() - log_both


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def effective_draws(log_w: Tensor) -> Tensor:
    """Kish's effective number of draws, `[n, ...] -> [...]`, from log weights up to a constant."""
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def _matched(z: Tensor, log_w: Tensor) -> MultivariateStudentT:
    """The Student distribution with the mean and covariance of weighted draws `[n, B, D]`.

    Weights are raised to the largest power up to 1 that leaves a fifth of the draws effective.
    """
    z, log_w = z.double(), log_w.double()
    low, high = torch.zeros_like(log_w[0]), torch.ones_like(log_w[0])
    power = high
    for _ in range(20):
        enough = effective_draws(power * log_w) >= ENOUGH * len(z)
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = (low + high) / 2
    w = (low * log_w).softmax(0).unsqueeze(-1)
    mean = (w * z).sum(0)
    centred = z - mean
    covariance = torch.einsum("nbi,nbj->bij", w * centred, centred)
    shrink = (DEGREES_OF_FREEDOM - 2) / DEGREES_OF_FREEDOM  # a Student's covariance is wider
    covariance = shrink * covariance + SMALLEST_VARIANCE * torch.eye(z.shape[-1]).to(z)
    return MultivariateStudentT(
        torch.full_like(mean[:, 0], DEGREES_OF_FREEDOM), mean, torch.linalg.cholesky(covariance)
    )

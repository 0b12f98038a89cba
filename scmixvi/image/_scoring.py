"""Draws of the posterior and what every objective takes of them."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from scmixvi.core import MixturePosterior
from scmixvi.image.protocols import DecoderPart, JointDensity, PosteriorPart


class BoundTerms(NamedTuple):
    """What every objective of `scmixvi.core` takes, in its order: `miselbo(*terms)`.

    Parameters
    ----------
    log_lik, log_prior
        log p(x_b | z_ls) and log p(z_ls), `[L, S, B]`, in nats; from A of the components
        `[L, A, B]`.
    log_q_all
        `[L, S, S, B]`; entry l, s, j, b is log q_j(z_ls | x_b), in nats. From A of the components
        `[L, A, S, B]` (S2A) or `[L, A, A, B]` (S2S).
    log_weights
        Of the components scored under, `[S]` or `[S, B]`; None for uniform weights.
    """

    log_lik: Tensor
    log_prior: Tensor
    log_q_all: Tensor
    log_weights: Tensor | None = None


def scored_draws(
    decoder: DecoderPart,
    posterior: MixturePosterior,
    prior: JointDensity,
    x: Tensor,
    n_samples: int,
    drawn: Tensor | None = None,
) -> BoundTerms:
    """Draw from every component, or those drawn, and score under all that the posterior has."""
    zs, log_q_all = posterior.sample_stratified(n_samples, drawn)
    log_lik = decoder(*zs).log_prob(x)
    return BoundTerms(log_lik, prior.log_prob(zs), log_q_all, posterior.log_weights)


def scored_by_path(
    decoder: DecoderPart,
    encoders: PosteriorPart,
    drawn_from: MixturePosterior,
    prior: JointDensity,
    x: Tensor,
) -> BoundTerms:
    """Draw once from some components; score under all, whose parameters are constants there."""
    zs, _ = drawn_from.sample_stratified(1)
    scores = _Scores(encoders)
    constants = {name: weight.detach() for name, weight in scores.named_parameters()}
    log_q_all, log_weights = functional_call(scores, constants, (x, zs))
    if zs[0].shape[1] == encoders.n_components:
        log_weights = drawn_from.log_weights  # with the gradient of weights that are learned
    return BoundTerms(decoder(*zs).log_prob(x), prior.log_prob(zs), log_q_all, log_weights)


class _Scores(nn.Module):
    """Every component's score of latents, as a module whose weights can be replaced."""

    def __init__(self, posterior: PosteriorPart) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor, zs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Score latents `[L, A, B, D]` a level under all: `[L, A, S, B]`, and their log weights."""
        posterior = self.posterior(x)
        return posterior.log_prob_all(zs), posterior.log_weights

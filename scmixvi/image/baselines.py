"""What mixtures are compared with: ensembles, and one big encoder with as many parameters.

An ensemble's components are trained one by one against the same target: the decoder and the prior
of the model with one component, which stay fixed. A "big IWAE" is one encoder with at least as
many weights as the mixture's S encoders, trained with L = S importance samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from scmixvi.core import MixturePosterior, Stage
from scmixvi.core.modes import evaluating
from scmixvi.core.posterior import Flow
from scmixvi.image.protocols import PosteriorPart
from scmixvi.image.vae import ImageVAE


def ensemble_member(trained: ImageVAE, posterior: PosteriorPart) -> ImageVAE:
    """Put a new posterior in front of a trained model's prior and decoder, which are frozen.

    Train the result by itself, as any other model: only the posterior learns.

    Parameters
    ----------
    trained
        The model with one component whose prior and decoder all members share.
    posterior
        Freshly initialised, with one component. Where the trained posterior has a flow, this one
        has the same, and it is frozen too.

    Raises
    ------
    ValueError
        If sizes do not fit, or the two posteriors do not share their flows.
    """
    member = ImageVAE(posterior, trained.prior, trained.decoder)
    levels = zip(_flows(trained.posterior), _flows(posterior), strict=True)
    flows = [_common(level) for level in levels]
    for part in (trained.prior, trained.decoder, *flows):
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return member


def ensemble(members: Sequence[ImageVAE]) -> ImageVAE:
    """Join separately trained members into one model with a uniform mixture as its posterior.

    Parameters
    ----------
    members
        Models that share one prior and one decoder: the trained model and those made from it by
        :func:`ensemble_member`.

    Raises
    ------
    ValueError
        If there is no member, or the members do not share prior and decoder: then they estimate
        different targets, and a mixture of them bounds nothing.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member.")
    first = members[0]
    if any(m.prior is not first.prior or m.decoder is not first.decoder for m in members):
        raise ValueError(
            "the members of an ensemble must share one prior and one decoder: "
            "make them with ensemble_member(trained, posterior)."
        )
    return ImageVAE(EnsemblePosterior([m.posterior for m in members]), first.prior, first.decoder)


class EnsemblePosterior(nn.Module):
    """Uniform mixture of posteriors that were trained apart.

    Parameters
    ----------
    posteriors
        Posteriors of :class:`scmixvi.image.vae.ImageVAE` with Gaussian stages, uniform weights and
        equally many components, for latents and images of the same sizes.

    Raises
    ------
    ValueError
        If there is none, or they differ in one of these.
    """

    log_weights = None

    def __init__(self, posteriors: Sequence[PosteriorPart]) -> None:
        super().__init__()
        described: set[Any] = {
            (p.n_components, tuple(p.latent_sizes), tuple(p.image_size)) for p in posteriors
        }
        if len(described) != 1 or any(
            getattr(p, "log_weights", None) is not None for p in posteriors
        ):
            raise ValueError(
                "the posteriors of an ensemble must have the same n_components, latent_sizes and "
                f"image_size, and uniform weights, but there are {sorted(described)}."
            )
        (n_components, self.latent_sizes, self.image_size) = described.pop()
        self.n_components = n_components * len(posteriors)
        self.posteriors = nn.ModuleList(cast("Sequence[nn.Module]", posteriors))
        self.floats_per_row = sum(getattr(p, "floats_per_row", 0) for p in posteriors)

    def forward(self, x: Tensor, components: Tensor | None = None) -> MixturePosterior:
        """Map images `[B, C, H, W]` to the mixture of all members' components.

        Raises
        ------
        ValueError
            If a stage carries a flow that the members do not share, or is not Gaussian; if some
            components alone are asked for.
        """
        if components is not None:
            raise ValueError(
                "an ensemble does not run some components alone (s2s): use the estimator 's2a'."
            )
        levels = zip(*(posterior(x).stages for posterior in self.posteriors), strict=True)
        return MixturePosterior([_join(stages) for stages in levels])


def encoder_weights(
    n_units: int, n_layers: int = 1, n_pixels: int = 784, n_latent: int = 40
) -> int:
    """Weights, without biases, of an ungated MLP encoder as Table 7 counts them.

    Parameters
    ----------
    n_units
        n, units of each hidden layer.
    n_layers
        N, layers between hidden layers (N = 1 is the paper's encoder with two hidden layers).
    n_pixels, n_latent
        Its input, and D.

    Examples
    --------
    >>> encoder_weights(300)
    349200
    """
    return n_pixels * n_units + n_layers * n_units**2 + 2 * n_latent * n_units


def matching_units(n_components: int, n_units: int = 300) -> int:
    """Fewest hidden units with which one encoder has at least the weights of S (Table 7).

    Examples
    --------
    >>> [matching_units(s) for s in (1, 2, 3)]
    [300, 509, 679]
    """
    return _fewest(n_units, n_components * encoder_weights(n_units), encoder_weights)


def matching_layers(n_components: int, n_units: int = 300) -> int:
    """Fewest layers between hidden layers with which one encoder has the weights of S (Table 7).

    Examples
    --------
    >>> [matching_layers(s) for s in (1, 2, 3)]
    [1, 5, 9]
    """
    wanted = n_components * encoder_weights(n_units)
    return _fewest(1, wanted, lambda n_layers: encoder_weights(n_units, n_layers))


def _fewest(start: int, wanted: int, weights: Callable[[int], int]) -> int:
    n = start
    while weights(n) < wanted:
        n += 1
    return n


def _flows(posterior: PosteriorPart) -> list[Flow | None]:
    """The flow of every level, as the posterior of a blank image has them."""
    module = cast("nn.Module", posterior)
    like = next(module.parameters(), torch.empty(0))
    with torch.no_grad(), evaluating(module):
        blank = posterior(like.new_zeros(1, *posterior.image_size))
    return [stage.flow for stage in blank.stages]


def _common(flows: Sequence[Flow | None]) -> Flow | None:
    """The one flow of a level that all members share, or None."""
    flow = flows[0]
    if any(other is not flow for other in flows) or (flow is not None and not flow.shared):
        raise ValueError(
            "the members of an ensemble must share one flow: give each new posterior the flow of "
            "the trained model (posterior.flows = trained.posterior.flows), one for all components."
        )
    return flow


def _join(stages: Sequence[Stage]) -> Stage:
    flow = _common([stage.flow for stage in stages])

    def conditional(*above: Tensor) -> Distribution:
        return _side_by_side([stage.conditional(*above) for stage in stages])

    return Stage(conditional, flow)


def _side_by_side(parts: Sequence[Distribution]) -> Distribution:
    """Gaussians `[..., S_i, B]` over `[D]` along the axis of components."""
    bases = [part.base_dist if isinstance(part, Independent) else part for part in parts]
    if not all(isinstance(base, Normal) for base in bases):
        raise ValueError("an ensemble can join Gaussian stages only.")
    loc, scale = (torch.cat([getattr(b, name) for b in bases], dim=-3) for name in ("loc", "scale"))
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)

"""Log p(x) of images by importance sampling, in chunks that fit the memory."""

import math
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from scmixvi._messages import is_number
from scmixvi.core import MixturePosterior, log_mixture, refined_posterior
from scmixvi.core.memory import freed_memory_kept
from scmixvi.core.modes import evaluating, frozen
from scmixvi.image._scoring import scored_draws
from scmixvi.image.protocols import JointDensity

if TYPE_CHECKING:
    from scmixvi.image.vae import ImageVAE

# Rows without gradients that take the memory of one with: what a backward pass needs is kept.
ROWS_A_GRADIENT = 6


Number = TypeVar("Number", float, Tensor)


def own_posterior(
    vae: "ImageVAE", x: Tensor, prior: JointDensity, n_steps: int
) -> MixturePosterior:
    """What the encoders say of images taken together, after gradient steps of each image's own."""
    posterior = vae.posterior(x)
    if not n_steps:
        return posterior

    def log_joint(*zs: Tensor) -> Tensor:
        return vae.decoder(*zs).log_prob(x) + prior.log_prob(zs)

    with frozen(vae.parameters()):
        return refined_posterior(posterior, log_joint, n_steps)


def log_mean_ratios(
    vae: "ImageVAE", x: Tensor, n_samples: int, memory_budget: float | None, n_steps: int = 0
) -> tuple[Tensor, Tensor]:
    """Log of the mean of L importance weights, and log mixture weights: both `[S, B]`."""
    memory_budget = _number_of_bytes(memory_budget, x)
    if not len(x):
        return x.new_empty(vae.n_components, 0), x.new_empty(vae.n_components, 0)
    kept = freed_memory_kept() if x.device.type == "cpu" else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), evaluating(vae), kept:
        x, prior = x.clone(), vae.prior()
        rows = int(memory_budget // (4 * floats_per_row(vae, prior)))
        n_images = max(1, min(len(x), rows // ROWS_A_GRADIENT if n_steps else rows))
        chunk = max(1, min(n_samples, rows // n_images))
        parts = [
            _of_images(vae, images, prior, n_samples, chunk, n_steps)
            for images in x.split(n_images)
        ]
    ratios, log_weights = zip(*parts, strict=True)
    return torch.cat(ratios, -1), torch.cat(log_weights, -1)


def _number_of_bytes(memory_budget: Any, x: Tensor) -> int:
    """A budget as a whole number: it may be a float as 1e9, infinite, or None for a fast one."""
    if memory_budget is None:
        return 2**25 if x.device.type == "cpu" else 2**30
    if not is_number(memory_budget) or not memory_budget > 0:
        raise ValueError(
            "memory_budget must be a positive number of bytes, or None for what was found to be "
            f"fast, but it is {memory_budget!r}."
        )
    return int(min(memory_budget, sys.maxsize))


def _of_images(
    vae: "ImageVAE", x: Tensor, prior: JointDensity, n_samples: int, chunk: int, n_steps: int
) -> tuple[Tensor, Tensor]:
    """:func:`log_mean_ratios` of images that are taken together, in chunks of samples."""
    posterior, total = own_posterior(vae, x, prior, n_steps), x.new_full((), -math.inf)
    for start in range(0, n_samples, chunk):
        drawn = min(chunk, n_samples - start)
        terms = scored_draws(vae.decoder, posterior, prior, x, drawn)
        log_ratio = (
            terms.log_lik + terms.log_prior - log_mixture(terms.log_q_all, terms.log_weights)
        )
        total = torch.logaddexp(total, log_ratio.logsumexp(0))
    return total - math.log(n_samples), posterior.log_weights_like(total).expand_as(total)


def floats_per_row(vae: "ImageVAE", prior: JointDensity) -> int:
    """About how many numbers one sample of each component takes, for one image."""
    floats = getattr(vae.decoder, "floats_per_row", 16 * math.prod(vae.image_size))
    floats += sum(getattr(part, "floats_per_row", 0) for part in (vae.posterior, prior))
    return vae.n_components * floats


def bits_per_dim(nll: Number, n_dims: int) -> Number:
    """Bits a dimension: -log p(x) / (d log 2), Eq. 14 with the sign that makes it positive.

    Parameters
    ----------
    nll
        Negative log-likelihood of images, in nats, any shape.
    n_dims
        d, the number of pixels times channels.
    """
    return nll / (n_dims * math.log(2))


def eq_17_and_pooled(
    nll_by_component: Tensor, log_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Both estimates of :meth:`ImageVAE.nll` from one set of draws.

    With :math:`n_{sb}` for what component s estimates of image b, Eq. 17 is
    :math:`\sum_s \pi_s n_{sb}`, the pooled estimate
    :math:`-\log \sum_s \pi_s \exp(-n_{sb}) \le \sum_s \pi_s n_{sb}`.

    Parameters
    ----------
    nll_by_component
        `[S, B]` in nats, from :meth:`ImageVAE.nll_by_component`.
    log_weights
        Of the mixture, `[S]` or `[S, B]`; None is uniform.

    Returns
    -------
    Each `[B]`, in nats.
    """
    n_components = len(nll_by_component)
    if log_weights is None:
        log_weights = nll_by_component.new_full((n_components,), -math.log(n_components))
    log_weights = log_weights.reshape(n_components, -1)
    nll = torch.where(log_weights.isneginf(), 0.0, nll_by_component)  # weight 0: whatever it says
    return (log_weights.exp() * nll).sum(0), -(log_weights - nll).logsumexp(0)

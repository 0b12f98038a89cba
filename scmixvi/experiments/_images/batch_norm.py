"""The test of the paper's released code: batch norm by the images that are scored together."""

import copy
import math

import torch
from torch import Tensor

from scmixvi.core import log_mixture
from scmixvi.image import ImageVAE


@torch.no_grad()
def nlls_by_statistics(vae: ImageVAE, x: Tensor, n_samples: int) -> Tensor:
    """What Eq. 17 averages, with either statistics of the batch norms, from the same draws.

    The released code leaves its models in training mode for the test, so that every component's
    draw of a batch of images is normalised by that batch. Then images lend each other what they
    are: p(x | z) of an image depends on the other images and draws, and what is returned for it is
    no likelihood of an image.

    Parameters
    ----------
    vae
        In evaluation mode, with uniform weights. Nothing of it changes.
    x
        Images `[B, C, H, W]`, that are scored together.
    n_samples
        L, samples a component.

    Returns
    -------
    `[2, S, B]`, in nats: by running statistics, as everywhere else, and by those of the batch.
    """
    decoders = vae.decoder, copy.deepcopy(vae.decoder).train()
    posterior, prior = vae.posterior(x), vae.prior()
    total = x.new_full((2, vae.n_components, len(x)), -math.inf)
    for _ in range(n_samples):
        zs, log_q_all = posterior.sample_stratified(1)
        of_components = list(zip(*(z.split(1, dim=1) for z in zs), strict=True))
        log_lik = torch.stack(
            [
                torch.cat([decoder(*own).log_prob(x) for own in of_components], dim=1)
                for decoder in decoders
            ]
        )
        log_ratio = log_lik + prior.log_prob(zs) - log_mixture(log_q_all)
        total = torch.logaddexp(total, log_ratio[:, 0])
    return math.log(n_samples) - total

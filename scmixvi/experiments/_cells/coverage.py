"""How honest a cell's posterior is: what its densest 90 % hold of the exact one."""

from collections.abc import Callable, Mapping

import anndata as ad
import numpy as np
import torch
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn

from scmixvi import MixtureSCVI
from scmixvi.core import MixturePosterior
from scmixvi.experiments._families import weighted_draws
from scmixvi.singlecell._queries.evidence import effective_draws

LEVEL = 0.9
AT_ONCE = 51


def cell_means(
    model: MixtureSCVI,
    indices: np.ndarray | None,
    figures: Callable[[dict, dict], Mapping[str, Tensor]],
    adata: ad.AnnData | None = None,
) -> dict[str, float]:
    """Means over cells of figures `[B]` of a minibatch and of what its encoders make of it.

    Of the model's own cells, or of others.
    """
    found, adata = [], model._validate_anndata(adata)
    batches = model._make_data_loader(adata=adata, indices=indices, batch_size=AT_ONCE)
    for tensors in batches:
        tensors = {key: value.to(model.device) for key, value in tensors.items()}
        with torch.no_grad():
            encoded = model.module._encoded_whole(tensors)
        found.append(figures(tensors, encoded))
    return {k: torch.cat([row[k] for row in found]).double().mean().item() for k in found[0]}


def covered(posterior: MixturePosterior, z: Tensor, weights: Tensor, n_draws: int) -> Tensor:
    """Weight of draws z `[n, B, D]` where q is at least as dense as in its densest 90 %, `[B]`."""
    threshold = posterior.log_prob(posterior.sample(n_draws)).quantile(1 - LEVEL, dim=0)
    return (weights * (posterior.log_prob([z]) >= threshold)).sum(0)


def expression_covered(
    module: nn.Module, tensors: dict, encoded: dict, own: Tensor, z: Tensor, weights: Tensor
) -> Tensor:
    """Weight of draws z inside the central 90 % of draws `own`, mean over genes, `[B]`."""

    def scales(u: Tensor) -> Tensor:
        library = encoded[MODULE_KEYS.LIBRARY_KEY].expand(len(u), -1, -1)
        outputs = module._outputs(encoded[MODULE_KEYS.QZ_KEY], None, library, u)
        decoded = module.generative(**module._get_generative_input(tensors, outputs))
        return decoded[MODULE_KEYS.PX_KEY].get_normalized("scale")

    low, high = scales(own).quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]), dim=0)
    exact = scales(z)
    inside = ((exact >= low) & (exact <= high)).float().mean(-1)
    return (weights * inside).sum(0)


def coverage(
    module: nn.Module,
    tensors: dict,
    encoded: dict,
    posteriors: Mapping[str, MixturePosterior],
    fit: MixturePosterior,
    log_joint: Callable[[Tensor], Tensor],
    n_draws: int,
) -> dict[str, Tensor]:
    """What 90 % of each posterior hold, of z and of expression, `[B]` each.

    The exact posterior is weighted draws of a Student distribution with the location and scale of
    `fit`; "effective_share_exact" is how many of them count.
    """
    z, log_w = weighted_draws(fit, log_joint, n_draws)
    weights = log_w.softmax(0)
    row = {"effective_share_exact": effective_draws(log_w) / n_draws}
    for name, posterior in posteriors.items():
        row[f"covered/{name}"] = covered(posterior, z, weights, n_draws)
        (draws,) = posterior.sample(n_draws)
        row[f"expression/{name}"] = expression_covered(module, tensors, encoded, draws, z, weights)
    return row

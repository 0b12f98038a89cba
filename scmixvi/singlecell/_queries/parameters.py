"""Parameters of p(x | z) for likelihoods of which scvi-tools does not give them."""

from typing import Any

import numpy as np
import torch
from scvi.data._utils import _validate_adata_dataloader_input
from scvi.distributions import Normal
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from torch.distributions import Distribution

UNDISPERSED = ("poisson", "normal")
"""Likelihoods without the inverse dispersion theta that scvi-tools' methods read."""


def check_dispersed(gene_likelihood: str) -> None:
    """Raise ValueError for a likelihood that has no inverse dispersion."""
    if gene_likelihood in UNDISPERSED:
        raise ValueError(
            "get_feature_correlation_matrix takes the dispersions of a negative binomial, and this "
            f"model's gene_likelihood is {gene_likelihood!r}: make the model with 'zinb' or 'nb', "
            "or correlate get_normalized_expression(n_samples=...)."
        )


@torch.inference_mode()
def likelihood_parameters(
    model: SCVI,
    adata: Any = None,
    indices: Any = None,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int | None = None,
    dataloader: Any = None,
    data_loader_kwargs: dict | None = None,
) -> dict[str, np.ndarray]:
    """As :meth:`scvi.model.SCVI.get_likelihood_parameters`, of Poisson and normal likelihoods."""
    _validate_adata_dataloader_input(model, adata, dataloader)
    if dataloader is None:
        dataloader = model._make_data_loader(
            adata=model._validate_anndata(adata),
            indices=indices,
            batch_size=batch_size,
            **(data_loader_kwargs or {}),
        )
    found: dict[str, list[Tensor]] = {}
    for tensors in dataloader:
        _, decoded = model.module.forward(
            tensors, inference_kwargs={"n_samples": n_samples}, compute_loss=False
        )
        for name, values in _parameters(decoded[MODULE_KEYS.PX_KEY]).items():
            found.setdefault(name, []).append(values.cpu())
    whole = {name: torch.cat(parts, dim=-2).numpy() for name, parts in found.items()}
    has_draws = give_mean and n_samples > 1
    return {name: values.mean(0) for name, values in whole.items()} if has_draws else whole


def _parameters(px: Distribution) -> dict[str, Tensor]:
    if isinstance(px, Normal):
        return {"mean": px.loc, "dispersions": px.scale}
    return {"mean": px.rate}

r"""Draws of a group of cells, weighted by how well they explain the group, in bounded memory.

A draw z gets the log weight that scvi-tools gives it,

.. math::
    \log p(z) + \log \sum_a \frac{p(x_a | z)}{p(x_a)} - \log \sum_a q(z | x_a)

over anchor cells a. scvi-tools keeps the decoded genes of all cells, and all pairs of cells and
anchors; here a minibatch of draws is weighted and forgotten, and only chosen draws are decoded
again.

The weights of thousands of draws may rest on few of them, which a warning says:
:mod:`scmixvi.experiments.integration` compares groups that do not differ.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.model import SCVI
from scvi.model._utils import _get_batch_code_from_category
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from torch.distributions import Distribution

from scmixvi.singlecell._evidence import effective_draws
from scmixvi.singlecell._likelihoods import log_likelihood
from scmixvi.singlecell._passes import cells_in_passes, draws_a_pass, rows_of

logger = logging.getLogger(__name__)

# Weights whose effective sample size (Kish) is below this are said to rest on few draws.
FEW_DRAWS = 100

# Elements of a draw's distance to every component of every anchor that a pass may hold.
_PAIRS_A_PASS = 2**22


class Anchors(NamedTuple):
    """A cells that draws are judged by."""

    x: Tensor  # [A, G] counts
    log_px: Tensor  # [A] nats
    qz: Distribution  # of A cells


def choose_anchors(
    model: SCVI,
    adata: AnnData,
    indices: np.ndarray,
    max_cells: int = 1024,
    n_mc_samples: int = 500,
    n_mc_samples_per_pass: int | None = None,
) -> Anchors:
    """At most `max_cells` of the cells, with their estimates of log p(x)."""
    if len(indices) > max_cells:
        some = np.random.choice(len(indices), max_cells, replace=False)  # noqa: NPY002
        indices = indices[np.sort(some)]  # a file is read fastest in its order
    log_px = model.get_marginal_ll(
        adata,
        indices=indices,
        return_mean=False,
        n_mc_samples=n_mc_samples,
        n_mc_samples_per_pass=n_mc_samples_per_pass,
    )
    counts, posteriors = [], []
    for tensors in model._make_data_loader(adata=adata, indices=indices):
        counts.append(tensors[REGISTRY_KEYS.X_KEY].to(model.device))
        inputs = model.module._get_inference_input(tensors)
        posteriors.append(model.module.inference(**inputs)[MODULE_KEYS.QZ_KEY])
    cls = type(posteriors[0])
    parts = {name: [getattr(q, name) for q in posteriors] for name in cls.arg_constraints}
    qz = cls(**{name: torch.cat(tensors) for name, tensors in parts.items()}, validate_args=False)
    return Anchors(torch.cat(counts), log_px.to(model.device), qz)


def log_weights(anchors: Anchors, u: Tensor, px: Distribution, theta: Tensor) -> Tensor:
    """Log importance weight of every draw, not normalised.

    Parameters
    ----------
    anchors
        A cells.
    u
        Draws before a logistic-normal transformation, `[N, D]`.
    px
        What they are decoded to, `[N, G]`: its library sizes are replaced by the anchors'.
    theta
        Inverse dispersion of `px` before it was broadcast: `[G]` or `[N, G]`.

    Returns
    -------
    `[N]`, nats.
    """
    found = []
    a_pass = {"X": anchors.x, "log_px": anchors.log_px}
    few = next(cells_in_passes(a_pass, anchors.x))["X"]
    n_draws = max(1, min(draws_a_pass(few), _PAIRS_A_PASS // anchors.qz.c_loc.numel()))
    for rows in torch.arange(len(u), device=u.device).split(n_draws):
        log_pz = -0.5 * (u[rows].square().sum(-1) + u.shape[-1] * np.log(2 * np.pi))
        log_qz = anchors.qz.log_prob(u[rows].unsqueeze(1)).squeeze(-1).logsumexp(-1)
        here = theta if theta.dim() == 1 else theta[rows].unsqueeze(1)
        ratio = [
            (_log_lik(part["X"], px, here, rows) - part["log_px"]).logsumexp(-1)
            for part in cells_in_passes(a_pass, anchors.x)
        ]
        found.append(log_pz + torch.stack(ratio).logsumexp(0) - log_qz)
    return torch.cat(found)


def _log_lik(x: Tensor, px: Distribution, theta: Tensor, rows: Tensor) -> Tensor:
    """Log p(x_a | z_n) with the library size of a: `[n, A]` for counts x `[A, G]`."""
    mu = px.scale[rows].unsqueeze(1) * x.sum(-1, keepdim=True)
    if not isinstance(px, ZeroInflatedNegativeBinomial):
        return log_likelihood(NegativeBinomial(mu=mu, theta=theta, validate_args=False), x, theta)
    logits = px.zi_logits[rows].unsqueeze(1).expand_as(mu)
    at_anchors = ZeroInflatedNegativeBinomial(
        mu=mu, theta=theta, zi_logits=logits, validate_args=False
    )
    return log_likelihood(at_anchors, x, theta)


def probabilities(log_weights: Tensor, truncation: bool = False) -> np.ndarray:
    r"""Weights p that sum to 1; with `truncation` none enters below the mean of all.

    If their effective sample size, :math:`1 / \sum_i p_i^2`, is small, a warning says so.
    """
    log_weights = log_weights.double()
    if truncation:
        log_mean = log_weights.logsumexp(0) - np.log(len(log_weights))
        log_weights = log_weights.clamp(min=log_mean)
    p = log_weights.softmax(0)
    effective = effective_draws(log_weights).item()
    if effective < min(FEW_DRAWS, 0.5 * len(p)):
        logger.warning(
            "the importance weights rest on the equivalent of %.0f of %d draws: expression is that "
            "of few cells, and a comparison of groups finds genes that do not differ. Compare with "
            "weights='uniform'.",
            effective,
            len(p),
        )
    return p.numpy()


@torch.inference_mode()
def weighted_expression(
    model: SCVI,
    adata: AnnData,
    indices: np.ndarray,
    n_draws: int,
    transform_batch: Any = None,
    gene_list: list[str] | None = None,
    library_size: float | str = 1,
    batch_size: int | None = None,
    return_numpy: bool | None = None,
    data_loader_kwargs: dict | None = None,
    truncation: bool = False,
    **anchor_kwargs: Any,
) -> np.ndarray | pd.DataFrame:
    """Normalised expression of `n_draws` draws of some cells, chosen by importance weight.

    Parameters
    ----------
    model, adata, indices, transform_batch, gene_list, library_size, batch_size, return_numpy
        As in :meth:`scvi.model.SCVI.get_normalized_expression`.
    n_draws
        Its `n_samples_overall`.
    data_loader_kwargs, truncation, **anchor_kwargs
        As there, and in :meth:`scvi.model.SCVI.get_importance_weights`.

    Returns
    -------
    `(n_draws, G)`; as a DataFrame its index names the cell of each draw.
    """
    (batch,) = _get_batch_code_from_category(model.get_anndata_manager(adata), transform_batch)
    anchors = choose_anchors(model, adata, indices, **anchor_kwargs)
    loading = {"adata": adata, "batch_size": batch_size, **(data_loader_kwargs or {})}
    draws, weights = [], []
    for tensors in model._make_data_loader(indices=indices, **loading):
        outputs, decoded = model.module.forward(
            tensors,
            inference_kwargs={"n_samples": n_draws // len(indices) + 1},
            generative_kwargs={"transform_batch": batch},
            compute_loss=False,
        )
        u, px = outputs["u"], decoded[MODULE_KEYS.PX_KEY]
        found = log_weights(anchors, u.flatten(0, -2), *_flat(px, decoded["px_r"], u))
        draws.append(u.reshape(-1, *u.shape[-2:]).cpu())
        weights.append(found.reshape(-1, u.shape[-2]).cpu())
    draws, weights = torch.cat(draws, dim=1), torch.cat(weights, dim=1)
    p = probabilities(weights.flatten(), truncation)
    drawn = np.random.choice(len(p), n_draws, p=p)  # noqa: NPY002  scvi.settings.seed sets it
    chosen, places = np.unique(drawn, return_inverse=True)
    genes = slice(None) if gene_list is None else adata.var_names.isin(gene_list)
    key, scaling = ("mu", 1) if library_size == "latent" else ("scale", library_size)
    expression = np.empty((len(chosen), len(adata.var_names[genes])), dtype=np.float32)
    pairs = np.divmod(chosen, len(indices))
    for rows, px in _decoded_again(model, indices, draws, *pairs, batch, loading):
        expression[rows] = px.get_normalized(key)[:, genes].cpu().numpy() * scaling
    if return_numpy:
        return expression[places]
    names = adata.obs_names[indices[pairs[1][places]]]
    return pd.DataFrame(expression[places], index=names, columns=adata.var_names[genes])


def _flat(px: Distribution, theta: Tensor, u: Tensor) -> tuple[Distribution, Tensor]:
    """Flatten px of `[K, n, G]` to one of `[K * n, G]`, with its inverse dispersion."""
    if theta.dim() > 1:
        theta = theta.expand(*u.shape[:-1], -1).flatten(0, -2)
    parts = {"mu": px.mu, "theta": px.theta, "scale": px.scale}
    if isinstance(px, ZeroInflatedNegativeBinomial):
        parts["zi_logits"] = px.zi_logits
    flat = {name: tensor.expand_as(px.mu).flatten(0, -2) for name, tensor in parts.items()}
    return type(px)(**flat, validate_args=False), theta


def _decoded_again(
    model: SCVI,
    indices: np.ndarray,
    draws: Tensor,
    numbers: np.ndarray,
    cells: np.ndarray,
    batch: Any,
    loading: dict,
) -> Any:
    """Yield rows of the pairs (number of a draw, cell) and px of them, cells in order."""
    order = np.argsort(cells, kind="stable")
    needed = np.unique(cells)
    start = 0
    for tensors in model._make_data_loader(indices=indices[needed], **loading):
        n_cells = len(tensors[REGISTRY_KEYS.X_KEY])
        here = needed[start : start + n_cells]
        rows = order[slice(*np.searchsorted(cells[order], (here[0], here[-1] + 1)))]
        of_cell = torch.from_numpy(np.searchsorted(here, cells[rows]))
        tensors = {name: rows_of(tensor, of_cell, n_cells) for name, tensor in tensors.items()}
        outputs = model.module.inference(**model.module._get_inference_input(tensors))
        u = draws[numbers[rows], cells[rows]].to(model.device)
        outputs[MODULE_KEYS.Z_KEY] = model.module.z_encoder.z_transformation(u)
        inputs = model.module._get_generative_input(tensors, outputs)
        decoded = model.module.generative(**inputs, transform_batch=batch)
        yield rows, decoded[MODULE_KEYS.PX_KEY]
        start += n_cells

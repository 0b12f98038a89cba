r"""Draws of a group of cells, weighted by how well they explain the group, in bounded memory.

A draw z gets the log weight that scvi-tools gives it,

.. math::
    \log p(z) + \log \sum_a \frac{p(x_a | z)}{p(x_a)} - \log \sum_a q(z | x_a)

over anchor cells a. scvi-tools keeps the decoded genes of all cells, and all pairs of cells and
anchors; here a minibatch of draws is weighted and forgotten. Where size factors are registered
p(x_a | z) has that of a, in the place of which scvi-tools puts its total count.

The weights of thousands of draws may rest on few of them, which a warning says:
:mod:`scmixvi.experiments.integration` compares groups that do not differ.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from scvi.model import SCVI
from scvi.module._constants import MODULE_KEYS
from torch import Tensor
from torch.distributions import Distribution

from scmixvi.singlecell._parts.distributions import MixtureOfNormals, log_standard_normal
from scmixvi.singlecell._parts.likelihoods import log_likelihood
from scmixvi.singlecell._parts.passes import cells_in_passes, draws_a_pass
from scmixvi.singlecell._queries.evidence import effective_draws

logger = logging.getLogger(__name__)

# Weights whose effective sample size (Kish) is below this are said to rest on few draws.
FEW_DRAWS = 100

# Elements of a draw's distance to every component of every anchor that a pass may hold.
_PAIRS_A_PASS = 2**22


class Anchors(NamedTuple):
    """A cells that draws are judged by."""

    x: Tensor  # [A, G] counts
    library: Tensor  # [A, 1] size factors, or sums of counts
    log_px: Tensor  # [A] nats
    qz: Distribution  # of A cells


class Chosen(NamedTuple):
    """Draws (z, l) of some cells, each once, and in which places they stand."""

    u: Tensor  # [N, D], before a logistic-normal transformation
    log_library: Tensor  # [N, 1]
    cells: np.ndarray  # [N] places of the cells asked for
    places: np.ndarray  # [n_draws] into the N


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
    counts, libraries, posteriors = [], [], []
    for tensors in model._make_data_loader(adata=adata, indices=indices):
        x = tensors[REGISTRY_KEYS.X_KEY].to(model.device)
        factors = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        counts.append(x)
        libraries.append(x.sum(1, keepdim=True) if factors is None else factors.to(x))
        inputs = model.module._get_inference_input(tensors)
        posteriors.append(model.module.inference(**inputs)[MODULE_KEYS.QZ_KEY])
    qz = MixtureOfNormals.joined(posteriors)
    return Anchors(torch.cat(counts), torch.cat(libraries), log_px.to(model.device), qz)


def log_importance(anchors: Anchors, u: Tensor, px: Distribution, theta: Tensor) -> Tensor:
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
    a_pass = {"X": anchors.x, "library": anchors.library, "log_px": anchors.log_px}
    few = next(cells_in_passes(a_pass, anchors.x))["X"]
    n_draws = max(1, min(draws_a_pass(few), _PAIRS_A_PASS // anchors.qz.c_loc.numel()))
    for rows in torch.arange(len(u), device=u.device).split(n_draws):
        log_pz = log_standard_normal(u[rows])
        log_qz = anchors.qz.log_prob(u[rows].unsqueeze(1)).squeeze(-1).logsumexp(-1)
        here = theta if theta.dim() == 1 else theta[rows].unsqueeze(1)
        ratio = [
            (_log_lik(part, px, here, rows) - part["log_px"]).logsumexp(-1)
            for part in cells_in_passes(a_pass, anchors.x)
        ]
        found.append(log_pz + torch.stack(ratio).logsumexp(0) - log_qz)
    return torch.cat(found)


def _log_lik(part: dict[str, Tensor], px: Distribution, theta: Tensor, rows: Tensor) -> Tensor:
    """Log p(x_a | z_n) with the library size of a, `[n, A]`, of some of the anchors."""
    x, mu = part["X"], px.scale[rows].unsqueeze(1) * part["library"]
    if not isinstance(px, ZeroInflatedNegativeBinomial):
        return log_likelihood(NegativeBinomial(mu=mu, theta=theta, validate_args=False), x, theta)
    logits = px.zi_logits[rows].unsqueeze(1).expand_as(mu)
    at_anchors = ZeroInflatedNegativeBinomial(
        mu=mu, theta=theta, zi_logits=logits, validate_args=False
    )
    return log_likelihood(at_anchors, x, theta)


def probabilities(log_importance: Tensor, truncation: bool = False) -> np.ndarray:
    r"""Weights p that sum to 1; with `truncation` none enters below the mean of all.

    If their effective sample size, :math:`1 / \sum_i p_i^2`, is small, a warning says so.
    """
    log_importance = log_importance.double()
    if truncation:
        log_mean = log_importance.logsumexp(0) - np.log(len(log_importance))
        log_importance = log_importance.clamp(min=log_mean)
    p = log_importance.softmax(0)
    effective = effective_draws(log_importance).item()
    if effective < min(FEW_DRAWS, 0.5 * len(p)):
        logger.warning(
            "the importance weights rest on the equivalent of %.0f of %d draws: expression is that "
            "of few cells, and a comparison of groups finds genes that do not differ. Compare with "
            "weights='importance_by_cell' or 'uniform'.",
            effective,
            len(p),
        )
    return p.numpy()


def pooled_draws(
    model: SCVI,
    indices: np.ndarray,
    n_draws: int,
    batch: Any,
    loading: dict[str, Any],
    truncation: bool = False,
    **anchor_kwargs: Any,
) -> Chosen:
    """Draws of all cells together, chosen by their weight for the group.

    Parameters
    ----------
    model, indices
        As in :meth:`scvi.model.SCVI.get_normalized_expression`.
    n_draws
        To choose; some may be the same.
    batch
        Code of the batch that draws are decoded in, None for each cell's own.
    loading
        For `model._make_data_loader`.
    truncation, **anchor_kwargs
        As in :meth:`scvi.model.SCVI.get_importance_weights`.
    """
    anchors = choose_anchors(model, loading["adata"], indices, **anchor_kwargs)
    draws, libraries, weights = [], [], []
    for tensors in model._make_data_loader(indices=indices, **loading):
        outputs, decoded = model.module.forward(
            tensors,
            inference_kwargs={"n_samples": n_draws // len(indices) + 1},
            generative_kwargs={"transform_batch": batch},
            compute_loss=False,
        )
        u, px = outputs["u"], decoded[MODULE_KEYS.PX_KEY]
        found = log_importance(anchors, u.flatten(0, -2), *_flat(px, decoded["px_r"], u))
        draws.append(u.reshape(-1, *u.shape[-2:]).cpu())
        log_library = outputs[MODULE_KEYS.LIBRARY_KEY].expand(*u.shape[:-1], 1)
        libraries.append(log_library.reshape(-1, *log_library.shape[-2:]).cpu())
        weights.append(found.reshape(-1, u.shape[-2]).cpu())
    draws, libraries, weights = (torch.cat(f, dim=1) for f in (draws, libraries, weights))
    p = probabilities(weights.flatten(), truncation)
    drawn = np.random.choice(len(p), n_draws, p=p)  # noqa: NPY002  scvi.settings.seed sets it
    chosen, places = np.unique(drawn, return_inverse=True)
    numbers, cells = np.divmod(chosen, len(indices))
    return Chosen(draws[numbers, cells], libraries[numbers, cells], cells, places)


def _flat(px: Distribution, theta: Tensor, u: Tensor) -> tuple[Distribution, Tensor]:
    """Flatten px of `[K, n, G]` to one of `[K * n, G]`, with its inverse dispersion."""
    if theta.dim() > 1:
        theta = theta.expand(*u.shape[:-1], -1).flatten(0, -2)
    parts = {"mu": px.mu, "theta": px.theta, "scale": px.scale}
    if isinstance(px, ZeroInflatedNegativeBinomial):
        parts["zi_logits"] = px.zi_logits
    flat = {name: tensor.expand_as(px.mu).flatten(0, -2) for name, tensor in parts.items()}
    return type(px)(**flat, validate_args=False), theta

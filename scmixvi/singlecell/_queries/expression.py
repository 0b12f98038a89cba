"""Normalised expression of draws that are chosen by importance weight, in bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.model._utils import _get_batch_code_from_category
from scvi.module._constants import MODULE_KEYS
from torch.distributions import Distribution

from scmixvi.singlecell._parts.passes import rows_of
from scmixvi.singlecell._queries.cell_importance import draws_by_cell
from scmixvi.singlecell._queries.importance import Chosen, pooled_draws

CHOICES = {"importance": pooled_draws, "importance_by_cell": draws_by_cell}


@torch.inference_mode()
def weighted_expression(
    model: SCVI,
    adata: AnnData,
    indices: np.ndarray,
    n_draws: int,
    weights: str,
    transform_batch: Any = None,
    gene_list: list[str] | None = None,
    library_size: float | str = 1,
    batch_size: int | None = None,
    return_numpy: bool | None = None,
    data_loader_kwargs: dict | None = None,
    **importance_weighting_kwargs: Any,
) -> np.ndarray | pd.DataFrame:
    """Normalised expression of `n_draws` draws of some cells, chosen by importance weight.

    Parameters
    ----------
    model, adata, indices, transform_batch, gene_list, library_size, batch_size, return_numpy
        As in :meth:`scvi.model.SCVI.get_normalized_expression`.
    n_draws
        Its `n_samples_overall`.
    weights
        One of `CHOICES`.
    data_loader_kwargs
        As there.
    **importance_weighting_kwargs
        Those of what chooses.

    Returns
    -------
    `(n_draws, G)`; as a DataFrame its index names the cell of each draw.
    """
    (batch,) = _get_batch_code_from_category(model.get_anndata_manager(adata), transform_batch)
    loading = {"adata": adata, "batch_size": batch_size, **(data_loader_kwargs or {})}
    choose = CHOICES[weights]
    chosen = choose(model, indices, n_draws, batch, loading, **importance_weighting_kwargs)
    genes = slice(None) if gene_list is None else adata.var_names.isin(gene_list)
    key, scaling = ("mu", 1) if library_size == "latent" else ("scale", library_size)
    expression = np.empty((len(chosen.u), len(adata.var_names[genes])), dtype=np.float32)
    for rows, px in _decoded_again(model, indices, chosen, batch, loading):
        expression[rows] = px.get_normalized(key)[:, genes].cpu().numpy() * scaling
    if return_numpy:
        return expression[chosen.places]
    names = adata.obs_names[indices[chosen.cells[chosen.places]]]
    return pd.DataFrame(expression[chosen.places], index=names, columns=adata.var_names[genes])


def _decoded_again(
    model: SCVI, indices: np.ndarray, chosen: Chosen, batch: Any, loading: dict
) -> Iterator[tuple[np.ndarray, Distribution]]:
    """Yield rows of the chosen draws and px of them, cells in order."""
    cells = chosen.cells
    order = np.argsort(cells, kind="stable")
    needed = np.unique(cells)
    start = 0
    for tensors in model._make_data_loader(indices=indices[needed], **loading):
        n_cells = len(tensors[REGISTRY_KEYS.X_KEY])
        here = needed[start : start + n_cells]
        rows = order[slice(*np.searchsorted(cells[order], (here[0], here[-1] + 1)))]
        of_cell = torch.from_numpy(np.searchsorted(here, cells[rows]))
        z = model.module.z_encoder.z_transformation(chosen.u[rows].to(model.device))
        log_library = chosen.log_library[rows].to(model.device)
        outputs = {MODULE_KEYS.Z_KEY: z, MODULE_KEYS.LIBRARY_KEY: log_library}
        tensors = {name: rows_of(tensor, of_cell, n_cells) for name, tensor in tensors.items()}
        inputs = model.module._get_generative_input(tensors, outputs)
        decoded = model.module.generative(**inputs, transform_batch=batch)
        yield rows, decoded[MODULE_KEYS.PX_KEY]
        start += n_cells

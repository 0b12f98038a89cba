"""Where the latents go, for data in memory and for collections of files."""

from typing import Any

import numpy as np
from anndata import AnnData


def store_latents(adata: AnnData | Any, key: str, latents: np.ndarray) -> None:
    """Store one row a cell in `adata.obsm[key]`.

    scvi-tools' adapter of an :class:`anndata.experimental.AnnCollection` has no `obsm` unless the
    collection joined them: then every part of the collection gets the rows of its cells.
    """
    if adata.obsm is not None:
        adata.obsm[key] = latents
        return
    ends = np.cumsum([part.n_obs for part in adata.adatas])
    for part, rows in zip(adata.adatas, np.split(latents, ends[:-1]), strict=True):
        part.obsm[key] = rows


def has_latents(adata: AnnData | Any, key: str | None) -> bool:
    """Whether :func:`store_latents` has stored something, or something else lies there."""
    places = [adata] if adata.obsm is not None else adata.adatas
    return any(key in place.obsm for place in places)

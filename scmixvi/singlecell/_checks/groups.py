"""Groups of cells that are compared or scored: they have to be there, else one sentence."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.model.base._de_core import _subset_group

from scmixvi._messages import listing, quoted
from scmixvi.singlecell._checks.data import check_column


def check_groups(
    adata: AnnData, groupby: str | None, group1: Any, group2: Any, subset_idx: Any
) -> None:
    """Raise KeyError or ValueError if groups of cells to compare are not there.

    The arguments are those of :meth:`scvi.model.SCVI.differential_expression`.
    """
    if groupby is None:
        raise ValueError("name what to compare: groupby, a column of adata.obs, or idx1, cells.")
    check_column(adata.obs, groupby)
    column = adata.obs[groupby]
    cure = ""
    if group1 is None:
        cure = f" To compare all: adata.obs[{groupby!r}].cat.remove_unused_categories()."
        group1 = column.astype("category").cat.categories
    is_one = isinstance(group1, str) or not isinstance(group1, Iterable)
    wanted = [*([group1] if is_one else group1), *([] if group2 is None else [group2])]
    if subset_idx is not None:
        column = _subset_group(subset_idx, groupby, adata)
    absent = [group for group in wanted if not (column == group).any()]
    if absent:
        there = quoted(column.dropna().unique())
        raise ValueError(
            f"adata.obs[{groupby!r}] has no cell of {listing(quoted(absent))}: its groups are "
            f"{listing(there)}." + cure
        )
    if group2 is None and (column == wanted[0]).all():
        raise ValueError(
            f"all cells are {quoted(wanted)[0]} in adata.obs[{groupby!r}]: there are none to "
            "compare them with."
        )


def check_samples(sample_key: Any, learned: AnnData, scored: AnnData) -> None:
    """Raise KeyError or ValueError if cells cannot be scored by samples.

    Parameters
    ----------
    sample_key
        Column of obs.
    learned, scored
        The cells that samples are learned from, and those that are scored by their samples.
    """
    if not isinstance(sample_key, str):
        raise KeyError(
            f"name the samples: sample_key, one column of adata.obs, but it is {sample_key!r}."
        )
    for adata in (learned, scored):
        check_column(adata.obs, sample_key)
    of_cells = scored.obs[sample_key]
    if n_missing := int(of_cells.isna().sum()):
        raise ValueError(
            f"{n_missing} of {len(of_cells)} cells have no sample in adata.obs[{sample_key!r}]: "
            "leave them out, or give them one."
        )
    samples = pd.Index(of_cells.unique())
    absent = samples[~samples.isin(learned.obs[sample_key])]
    if len(absent):
        raise ValueError(
            f"adata.obs[{sample_key!r}] has no cell of {listing(quoted(absent))}, by which cells "
            "of adata_sub are to be scored: pass an adata that has all their samples."
        )


def check_rest(idx1: Any, idx2: Any, n_obs: int) -> None:
    """Raise ValueError if chosen cells are to be compared with all others, and there are none."""
    chosen = isinstance(idx1, np.ndarray) and idx2 is None
    if chosen and len(np.unique(idx1)) == n_obs:
        raise ValueError(
            "idx1 chooses all cells, so that there are none to compare them with: choose fewer, or "
            "name the others, idx2."
        )

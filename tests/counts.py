"""Small data sets for the single-cell tests."""

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def make_adata(n_cells=60, n_genes=23, seed=0):
    """Counts of three cell types in two batches, with covariates of every kind."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n_cells)
    programs = rng.gamma(1.0, 3.0, (3, n_genes))
    depth = rng.lognormal(0, 0.3, n_cells)
    counts = rng.negative_binomial(2, 2 / (2 + programs[types] * depth[:, None]))
    counts[:, 0] = np.maximum(counts[:, 0], 1)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(types, ["a", "b", "c"]),
            "batch": pd.Categorical.from_codes(rng.integers(0, 2, n_cells), ["x", "y"]),
            "donor": pd.Categorical.from_codes(rng.integers(0, 3, n_cells), ["d0", "d1", "d2"]),
            "age": rng.normal(0, 1, n_cells),
            "size": depth,
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return anndata.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=var)

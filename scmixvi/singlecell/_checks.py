"""Bad input, said in one sentence before anything is changed."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from torch import Tensor

from scmixvi.core import check_estimator, log_weights_from

MIXTURE_WEIGHTS = ("uniform", "learned", "amortized")
ENCODER_SHARING = ("separate", "trunk")
SCVI_OPTIONS = {
    "dispersion": ("gene", "gene-batch", "gene-label", "gene-cell"),
    "gene_likelihood": ("zinb", "nb", "poisson", "normal"),
    "latent_distribution": ("normal", "ln"),
    "use_batch_norm": ("encoder", "decoder", "none", "both"),
    "use_layer_norm": ("encoder", "decoder", "none", "both"),
    "batch_representation": ("one-hot", "embedding"),
}
"""Options of :class:`scvi.module.VAE` that take a name; it does not check all of them."""


def check_mixture_arguments(
    n_components: int, n_importance_samples: int, mixture_weights: str | Sequence[float]
) -> None:
    """Raise ValueError for arguments that no mixture can have."""
    for name, value in (
        ("n_components", n_components),
        ("n_importance_samples", n_importance_samples),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, but it is {value!r}.")
    if not isinstance(mixture_weights, str):
        log_weights_from(mixture_weights, n_components)
    elif mixture_weights not in MIXTURE_WEIGHTS:
        raise ValueError(
            f"mixture_weights must be one of {list(MIXTURE_WEIGHTS)} or {n_components} "
            f"numbers that sum to 1, but it is {mixture_weights!r}."
        )


def check_many_components(
    n_components: int,
    mixture_weights: str | Sequence[float],
    encoder_sharing: str,
    estimator: str,
    n_drawn: int,
) -> None:
    """Raise ValueError for ways of sharing and drawing that do not exist or do not fit."""
    if encoder_sharing not in ENCODER_SHARING:
        raise ValueError(
            f"encoder_sharing must be one of {list(ENCODER_SHARING)}, "
            f"but it is {encoder_sharing!r}."
        )
    check_estimator(estimator, n_drawn, n_components)
    learns = isinstance(mixture_weights, str) and mixture_weights != "uniform"
    if estimator != "all" and learns:
        raise ValueError(
            f"the estimator {estimator!r} chooses components in proportion to their weights, which "
            f"gives {mixture_weights} weights no right gradient: use uniform or given weights, "
            "or estimator='all'."
        )


def check_scvi_options(**given: Any) -> None:
    """Raise ValueError for an option of SCVI's whose name it does not know; others pass."""
    for name, known in SCVI_OPTIONS.items():
        if name in given and given[name] not in known:
            raise ValueError(f"{name} must be one of {list(known)}, but it is {given[name]!r}.")


def check_component(component: Any, n_components: int) -> int:
    """Return the number of a component; raise ValueError for what is none."""
    try:
        number = -1 if isinstance(component, bool) else operator.index(component)
    except TypeError:
        number = -1
    if not 0 <= number < n_components:
        raise ValueError(
            f"component must be one of 0 to {n_components - 1}, but it is {component!r}."
        )
    return number


def check_finite(counts: Any, where: str) -> None:
    """Raise ValueError if counts that are in memory hold NaN or infinity."""
    values = _values(counts)
    if values is None or not np.issubdtype(values.dtype, np.floating):
        return
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise ValueError(
            f"{where} holds {n_bad} entries that are NaN or infinite: counts must be finite, "
            "so find out where they come from or set them to 0."
        )


def check_counts(counts: Any, needs_library: bool) -> None:
    """Raise ValueError for negative counts, or for empty cells where a library size is needed."""
    values = _values(counts)
    if values is None:
        return
    if values.size and values.min() < 0:
        raise ValueError(
            f"the counts must not be negative, but the smallest is {values.min()}: register raw "
            "counts, not scaled or log-transformed values (setup_anndata's argument `layer`)."
        )
    if needs_library:
        n_empty = int((np.asarray(counts.sum(axis=1)).ravel() == 0).sum())
        if n_empty:
            raise ValueError(
                f"{n_empty} cells have no counts at all, so their library size is 0: remove them, "
                "for example with sc.pp.filter_cells(adata, min_counts=1)."
            )


def check_covariates(covariates: Any) -> None:
    """Raise ValueError if continuous covariates in a table hold NaN or infinity."""
    if not isinstance(covariates, pd.DataFrame):
        return
    for name, values in covariates.items():
        n_bad = int((~np.isfinite(values.to_numpy(float))).sum())
        if n_bad:
            raise ValueError(
                f"the continuous covariate adata.obs[{name!r}] holds {n_bad} entries that are NaN "
                "or infinite: fill them in, remove those cells, or leave the covariate out."
            )


def check_size_factors(factors: Any, name: str) -> None:
    """Raise ValueError unless size factors are finite and above 0."""
    values = np.asarray(factors, dtype=float)
    n_bad = int((~(np.isfinite(values) & (values > 0))).sum())
    if n_bad:
        raise ValueError(
            f"the size factor adata.obs[{name!r}] holds {n_bad} entries that are NaN, infinite or "
            "not above 0: compute it again, or remove those cells."
        )


def check_encoded(loc: Tensor) -> None:
    """Raise ValueError if component means `[n, S, D]` of queried cells are not finite."""
    n_bad = int((~loc.isfinite()).flatten(1).any(1).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(loc)} cells of a minibatch have no finite latents: their counts or "
            "covariates are negative, NaN or infinite, or the model's weights are not finite. "
            "Query with raw counts, as at registration."
        )


def check_query_genes(query_genes: Sequence[str], model_genes: Sequence[str]) -> None:
    """Raise ValueError unless query cells have the model's genes, in its order."""
    if np.array_equal(np.asarray(query_genes, dtype=str), np.asarray(model_genes, dtype=str)):
        return
    missing = [gene for gene in model_genes if gene not in set(query_genes)]
    detail = (
        f"{len(missing)} of the model's {len(model_genes)} genes are missing, "
        f"for example {missing[0]!r}"
        if missing
        else "its genes are not the model's genes in the model's order"
    )
    raise ValueError(
        f"the query data does not fit the model: {detail}. "
        "Run MixtureSCVI.prepare_query_anndata(adata, reference_model) first."
    )


def _values(counts: Any) -> np.ndarray | None:
    """The stored values of a matrix in memory; None for data on disk or computed lazily."""
    if sparse.issparse(counts):
        return vars(counts).get("data")  # scvi-tools' stand-in for files has it computed
    return counts if isinstance(counts, np.ndarray) else None

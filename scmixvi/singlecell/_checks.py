"""Bad input, said in one sentence before anything is changed."""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scvi.model.base._de_core import _subset_group
from torch import Tensor

from scmixvi.core import check_estimator, log_weights_from

# Arguments of `setup_anndata`: which take one column of obs, which several, and which of numbers.
_ONE_COLUMN = ("batch_key", "labels_key", "size_factor_key")
_COLUMNS = ("categorical_covariate_keys", "continuous_covariate_keys")
_NUMBERS = ("size_factor_key", "continuous_covariate_keys")

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
    check_whole("n_components", n_components)
    check_whole("n_importance_samples", n_importance_samples)
    if not isinstance(mixture_weights, str):
        log_weights_from(mixture_weights, n_components)
    elif mixture_weights not in MIXTURE_WEIGHTS:
        raise ValueError(
            f"mixture_weights must be one of {list(MIXTURE_WEIGHTS)} or {n_components} "
            f"numbers that sum to 1, but it is {mixture_weights!r}."
        )


def check_whole(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but it is {value!r}.")


def check_jitter(jitter: Any) -> None:
    """Raise ValueError unless the relative size of the noise is a finite number of at least 0."""
    is_number = isinstance(jitter, Real) and not isinstance(jitter, bool)
    if not is_number or not 0 <= jitter < np.inf:
        raise ValueError(f"jitter must be a finite number of at least 0, but it is {jitter!r}.")


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


def check_indices(indices: Any, n_obs: int, name: str = "indices") -> np.ndarray | None:
    """Return the positions of chosen cells, from 0; None stays None, which is all cells.

    Parameters
    ----------
    indices
        Positions, which count from the end below 0, or a mask with an entry for each cell.
    n_obs
        Number of cells that there are.
    name
        What messages call them.

    Raises
    ------
    ValueError
        If they are neither, choose no cell, or choose one that is not there.
    """
    if indices is None:
        return None
    found = np.asarray(indices)
    if found.dtype == bool and found.ndim == 1:
        if len(found) != n_obs:
            raise ValueError(
                f"{name} is a mask, which must have one entry for each of the {n_obs} cells, but "
                f"it has {len(found)}."
            )
        found = np.flatnonzero(found)
    if found.size == 0:
        raise ValueError(f"{name} chooses no cell: give at least one.")
    if found.ndim != 1 or found.dtype.kind not in "iu":
        given = " ".join(f"{indices!r:.60}".split())
        raise ValueError(
            f"{name} must be a list of positions or a mask with one entry for each cell, but it is "
            f"{given}: the positions of names are adata.obs_names.get_indexer(names)."
        )
    found = found.astype(np.int64)
    outside = found[(found < -n_obs) | (found >= n_obs)]
    if outside.size:
        raise ValueError(
            f"{name} must lie between {-n_obs} and {n_obs - 1}, as there are {n_obs} cells, but "
            f"{outside.size} of them do not, for example {outside[0]}."
        )
    return np.where(found < 0, found + n_obs, found)


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


def check_columns(obs: Any, setup: Mapping[str, Any]) -> None:
    """Raise for columns of obs that cannot be registered.

    Parameters
    ----------
    obs
        The cells' columns.
    setup
        Arguments of `setup_anndata`.

    Raises
    ------
    KeyError
        If a column is not there.
    ValueError
        If an argument is a name where a list is meant, or the other way round, or if a cell has no
        category.
    """
    for name in _ONE_COLUMN:
        if isinstance(setup.get(name), list | tuple):
            raise ValueError(f"{name} takes one column of adata.obs, but it is {setup[name]!r}.")
    for name in _COLUMNS:
        if isinstance(keys := setup.get(name), str | tuple):
            right = [keys] if isinstance(keys, str) else list(keys)
            raise ValueError(f"{name} takes a list of columns of adata.obs: write {name}={right}.")
    named = {n: [setup[n]] for n in _ONE_COLUMN if setup.get(n) is not None}
    named |= {n: list(setup[n]) for n in _COLUMNS if setup.get(n) is not None}
    for key in chain(*named.values()):
        if key not in obs:
            raise KeyError(f"adata.obs has no column {key!r}: it has {listing(obs)}.")
    for key in chain(*(keys for name, keys in named.items() if name not in _NUMBERS)):
        n_missing = int(np.sum(pd.isna(obs[key])))
        if n_missing:
            raise ValueError(
                f"adata.obs[{key!r}] holds {n_missing} missing entries (NaN), and every cell needs "
                "a category: give them one of their own, or remove those cells."
            )


def check_covariates(covariates: Any) -> None:
    """Raise ValueError if continuous covariates in a table are no numbers, NaN or infinite."""
    if not isinstance(covariates, pd.DataFrame):
        return
    for name, values in covariates.items():
        what = f"the continuous covariate adata.obs[{name!r}]"
        advice = "convert it, or register it in categorical_covariate_keys"
        n_bad = int((~np.isfinite(_numbers(values, what, advice))).sum())
        if n_bad:
            raise ValueError(
                f"{what} holds {n_bad} entries that are NaN or infinite: fill them in, remove "
                "those cells, or leave the covariate out."
            )


def check_size_factors(factors: Any, name: str) -> None:
    """Raise ValueError unless size factors are finite and above 0."""
    what = f"the size factor adata.obs[{name!r}]"
    values = _numbers(factors, what, "convert it to numbers above 0")
    n_bad = int((~(np.isfinite(values) & (values > 0))).sum())
    if n_bad:
        raise ValueError(
            f"{what} holds {n_bad} entries that are NaN, infinite or not above 0: compute it "
            "again, or remove those cells."
        )


def check_registration(adata: AnnData, setup: Mapping[str, Any]) -> None:
    """Raise for counts and columns that cannot be registered, given `setup_anndata`'s arguments."""
    counts, where = counts_of(adata, setup.get("layer"))
    if isinstance(counts, sparse.sparray):
        raise ValueError(
            f"{where} is a {type(counts).__name__}, and scvi-tools takes sparse matrices: convert "
            f"it first, {where} = scipy.sparse.csr_matrix({where})."
        )
    check_columns(adata.obs, setup)


def check_query(adata: AnnData, setup: Mapping[str, Any]) -> None:
    """Raise for other cells than the model's that cannot be registered, or would give NaN."""
    check_registration(adata, setup)
    if (names := setup.get("continuous_covariate_keys")) is not None:
        check_covariates(adata.obs[list(names)])
    if (name := setup.get("size_factor_key")) is not None:
        check_size_factors(adata.obs[name], name)


def check_groups(
    adata: AnnData, groupby: str | None, group1: Any, group2: Any, subset_idx: Any
) -> None:
    """Raise KeyError or ValueError if groups of cells to compare are not there.

    The arguments are those of :meth:`scvi.model.SCVI.differential_expression`.
    """
    if groupby is None:
        raise ValueError("name what to compare: groupby, a column of adata.obs, or idx1, cells.")
    if groupby not in adata.obs:
        raise KeyError(f"adata.obs has no column {groupby!r}: it has {listing(adata.obs)}.")
    column = adata.obs[groupby]
    if group1 is None:
        group1 = column.astype("category").cat.categories
    is_one = isinstance(group1, str) or not isinstance(group1, Iterable)
    wanted = [*([group1] if is_one else group1), *([] if group2 is None else [group2])]
    if subset_idx is not None:
        column = _subset_group(subset_idx, groupby, adata)
    absent = [group for group in wanted if not (column == group).any()]
    if absent:
        there = map(repr, column.dropna().unique())
        raise ValueError(
            f"adata.obs[{groupby!r}] has no cell of {listing(map(repr, absent))}: its groups are "
            f"{listing(there)}."
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


def check_folder(dir_path: Any) -> None:
    """Raise ValueError for an empty path, which would be the folder that the process runs in."""
    if not os.fspath(dir_path):
        raise ValueError("dir_path is empty: name a folder to save the model in, or '.' for here.")


def check_query_order(adata: Any, reference_model: Any) -> None:
    """Raise ValueError if a query and its reference model stand in each other's place."""
    if isinstance(adata, str | os.PathLike) or isinstance(reference_model, AnnData):
        raise ValueError(
            "load_query_data takes the query cells first and the reference model, or the folder "
            f"that it is saved in, second, but it is given a {type(adata).__name__} and a "
            f"{type(reference_model).__name__}."
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


def counts_of(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Counts and what to call them; None for a layer that is not there."""
    if layer is None:
        return adata.X, "adata.X"
    found = adata.layers[layer] if layer in adata.layers.keys() else None  # a collection has no get
    return found, f"adata.layers[{layer!r}]"


def listing(names: Iterable[object], at_most: int = 12) -> str:
    """What there is, for messages: the first names, and how many more."""
    names = list(map(str, names))
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return (", ".join(names[:at_most]) or "nothing") + more


def _numbers(values: Any, what: str, advice: str) -> np.ndarray:
    """A column as floats; raises ValueError if it holds text."""
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        entries = pd.Series(np.asarray(values, dtype=object).ravel())
    numbers = pd.to_numeric(entries, errors="coerce")
    text = entries[numbers.isna() & entries.notna()]
    if len(text):
        raise ValueError(
            f"{what} holds {len(text)} entries that are no numbers, for example {text.iloc[0]!r}: "
            f"{advice}."
        )
    return numbers.to_numpy(float)


def _values(counts: Any) -> np.ndarray | None:
    """The stored values of a matrix in memory; None for data on disk or computed lazily."""
    if sparse.issparse(counts):
        return vars(counts).get("data")  # scvi-tools' stand-in for files has it computed
    return counts if isinstance(counts, np.ndarray) else None

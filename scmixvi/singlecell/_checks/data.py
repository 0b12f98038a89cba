"""Bad data, said in one sentence before anything is changed."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scmixvi._messages import listing, quoted

# Arguments of `setup_anndata`: which take one column of obs, which several, and which of numbers.
_ONE_COLUMN = ("batch_key", "labels_key", "size_factor_key")
_COLUMNS = ("categorical_covariate_keys", "continuous_covariate_keys")
_NUMBERS = ("size_factor_key", "continuous_covariate_keys")


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


def check_column(obs: Any, key: str) -> None:
    """Raise KeyError, with what is there, for a column of obs that is not."""
    if key not in obs:
        raise KeyError(f"adata.obs has no column {key!r}: it has {listing(obs)}.")


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
        If an argument is a name where a list is meant, or the other way round, or names a column
        twice, or if a cell has no category, or categories are text and numbers.
    """
    for name in _ONE_COLUMN:
        if isinstance(setup.get(name), list | tuple):
            raise ValueError(f"{name} takes one column of adata.obs, but it is {setup[name]!r}.")
    for name in _COLUMNS:
        if isinstance(keys := setup.get(name), str | tuple):
            right = [keys] if isinstance(keys, str) else list(keys)
            raise ValueError(f"{name} takes a list of columns of adata.obs: write {name}={right}.")
        if keys is not None and not isinstance(keys, Iterable):
            raise ValueError(f"{name} takes a list of columns of adata.obs, but it is {keys!r}.")
    named = {n: [setup[n]] for n in _ONE_COLUMN if setup.get(n) is not None}
    named |= {n: list(setup[n]) for n in _COLUMNS if setup.get(n) is not None}
    for name, keys in named.items():
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"{name} names {listing(quoted(twice))} more than once.")
    for key in chain(*named.values()):
        check_column(obs, key)
    for key in chain(*(keys for name, keys in named.items() if name not in _NUMBERS)):
        kinds = {isinstance(value, str) for value in pd.unique(pd.Series(obs[key]).dropna())}
        if len(kinds) > 1:
            raise ValueError(
                f"adata.obs[{key!r}] mixes text and numbers, which have no order: make it text, "
                f"adata.obs[{key!r}].astype(str)."
            )
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
    if not hasattr(adata, "obs") or not hasattr(adata, "layers"):
        raise ValueError(
            f"adata must be an AnnData of raw counts, but it is a {type(adata).__name__}: make "
            "one, anndata.AnnData(counts)."
        )
    if hasattr(adata, "mod"):
        raise ValueError(
            "adata is a MuData, and MixtureSCVI takes one modality of it, an AnnData: "
            f"adata[{next(iter(adata.mod), 'rna')!r}]."
        )
    counts, where = counts_of(adata, setup.get("layer"))
    if setup.get("layer") is not None and setup["layer"] not in adata.layers.keys():
        there = filter(None, adata.layers.keys())  # None is X, from anndata 0.13 on
        cure = (
            " Counts that are in adata.raw become one by adata.layers['counts'] = "
            "adata.raw[:, adata.var_names].X."
            if getattr(adata, "raw", None) is not None
            else ""
        )
        raise KeyError(f"adata has no layer {setup['layer']!r}: it has {listing(there)}.{cure}")
    if counts is None and setup.get("layer") is None:
        raise ValueError("adata.X is empty (None): name the layer of raw counts, layer=...")
    if 0 in adata.shape:
        raise ValueError(
            f"adata has {adata.shape[0]} cells and {adata.shape[1]} genes: there must be some of "
            "both."
        )
    if isinstance(counts, sparse.sparray):
        raise ValueError(
            f"{where} is a {type(counts).__name__}, and scvi-tools takes sparse matrices: convert "
            f"it first, {where} = scipy.sparse.csr_matrix({where})."
        )
    if isinstance(counts, np.ma.MaskedArray):
        raise ValueError(
            f"{where} is a masked array: fill what is masked in first, {where} = {where}.filled(0)."
        )
    if sparse.issparse(counts) and counts.dtype == np.float16:
        raise ValueError(
            f"{where} is a sparse matrix of float16, of which scipy takes no rows: convert it "
            f"first, {where} = {where}.astype('float32')."
        )
    check_columns(adata.obs, setup)


def check_statistics(adata: AnnData, layer: str | None) -> None:
    """Raise ValueError for counts on disk, of which scvi-tools knows no means."""
    counts, where = counts_of(adata, layer)
    stand_in = sparse.issparse(counts) and _values(counts) is None
    if counts is not None and (stand_in or not hasattr(counts, "sum")):
        raise ValueError(
            f"{where} is on disk, where its statistics cannot be computed: pass all_stats=False, "
            "or load the data into memory."
        )


def counts_of(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Counts and what to call them; None for a layer that is not there."""
    if layer is None:
        return adata.X, "adata.X"
    found = adata.layers[layer] if layer in adata.layers.keys() else None  # a collection has no get
    return found, f"adata.layers[{layer!r}]"


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

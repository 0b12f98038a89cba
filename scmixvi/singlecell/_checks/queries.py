"""What a model can be asked: of which cells, groups and genes, else one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._constants import _FIELD_REGISTRIES_KEY, _STATE_REGISTRY_KEY, ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField
from scvi.model import SCVI

from scmixvi._messages import listing, quoted
from scmixvi.singlecell._checks.data import (
    check_counts,
    check_covariates,
    check_finite,
    check_registration,
    check_size_factors,
    counts_of,
)
from scmixvi.singlecell._loops.counts import row_sums


def check_categories(
    obs: Any, setup: Mapping[str, Any], registry: Mapping[str, Any], may_be_new: bool = False
) -> None:
    """Raise ValueError for cells of categories that a model does not know.

    Parameters
    ----------
    obs
        The cells' columns.
    setup
        Arguments of `setup_anndata` that the model's data were registered with.
    registry
        What the model knows of its data.
    may_be_new
        Whether it learns those that are new, which then have to be text or numbers as its own are.
    """
    for key, known in _categories(setup, registry).items():
        there = pd.Index(np.asarray(pd.Series(obs[key]).unique()))
        new = there[~there.isin(known)].tolist()
        if not new:
            continue
        found = (
            f"adata.obs[{key!r}] holds {listing(quoted(new))}, and the model knows "
            f"{listing(quoted(known))}"
        )
        if not may_be_new:
            raise ValueError(
                f"{found}: name them as the model does, or map cells of a new one with "
                "MixtureSCVI.load_query_data(adata, model)."
            )
        if len({isinstance(value, str) for value in (*new, *known)}) > 1:
            raise ValueError(f"{found}: make them text, or numbers, as the model's are.")


def _categories(setup: Mapping[str, Any], registry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The categories that a model knows, by column of obs."""
    fields = registry.get(_FIELD_REGISTRIES_KEY) or {}

    def state(field: str) -> Mapping[str, Any]:
        return (fields.get(field) or {}).get(_STATE_REGISTRY_KEY) or {}

    joint = state(REGISTRY_KEYS.CAT_COVS_KEY).get(CategoricalJointObsField.MAPPINGS_KEY) or {}
    found = {key: joint.get(key) for key in setup.get("categorical_covariate_keys") or ()}
    for name, field in (
        ("batch_key", REGISTRY_KEYS.BATCH_KEY),
        ("labels_key", REGISTRY_KEYS.LABELS_KEY),
    ):
        if setup.get(name) is not None:
            known = state(field).get(CategoricalObsField.CATEGORICAL_MAPPING_KEY)
            found[setup[name]] = known
    return {key: np.asarray(known) for key, known in found.items() if known is not None}


def check_query(
    adata: AnnData,
    setup: Mapping[str, Any],
    genes: Sequence[str] | None,
    takes_counts: bool,
    needs_library: bool,
) -> None:
    """Raise for other cells than the model's that it cannot answer for.

    Parameters
    ----------
    adata
        The cells.
    setup
        Arguments of `setup_anndata` that the model's data were registered with.
    genes
        Names of the model's genes, in its order; None where they are not known.
    takes_counts
        Whether what it holds has to be counts, and has not been looked at.
    needs_library
        Whether every cell needs some.
    """
    check_registration(adata, setup)
    if genes is not None:
        check_query_genes(adata.var_names, genes)
    if takes_counts and _get_adata_minify_type(adata) is None:
        counts, where = counts_of(adata, setup.get("layer"))
        check_finite(counts, where)
        check_counts(counts, needs_library)
    if (names := setup.get("continuous_covariate_keys")) is not None:
        check_covariates(adata.obs[list(names)])
    if (name := setup.get("size_factor_key")) is not None:
        check_size_factors(adata.obs[name], name)


def check_stored_posteriors(adata: AnnData, minified_data_type: str | None) -> None:
    """Raise ValueError for full data where a model's own are minified."""
    if minified_data_type is not None and SCVI._LATENT_QZM_KEY not in adata.obsm:
        raise ValueError(
            "the model's data are minified, and adata holds no posteriors like theirs: load the "
            "model with the full data to ask it about other cells."
        )


def check_can_encode(adata: AnnData, minified_data_type: str | None) -> None:
    """Raise ValueError for data minified without counts where the model encodes counts."""
    no_counts = ADATA_MINIFY_TYPE.LATENT_POSTERIOR
    if _get_adata_minify_type(adata) == no_counts and minified_data_type is None:
        raise ValueError(
            "adata is minified without counts, and this model's own data are not: ask the model "
            "that minified them, or give it the full data."
        )


def check_holds_counts(tensors: Mapping[str, Any]) -> None:
    """Raise ValueError for a minibatch of minified cells whose counts were not kept."""
    sizes = tensors.get(REGISTRY_KEYS.OBSERVED_LIB_SIZE)
    if sizes is None:
        return
    counts = row_sums(tensors[REGISTRY_KEYS.X_KEY])
    if ((counts == 0) & (sizes.to(counts) > 0)).any():
        raise ValueError(
            "adata is minified without counts, which this question is about: give the full data, "
            "or data minified with counts."
        )


def check_own_genes(n_vars: int, n_registered: int) -> None:
    """Raise ValueError if genes came or went since the data were registered."""
    if n_vars != n_registered:
        raise ValueError(
            f"adata has {n_vars} genes now and had {n_registered} at setup_anndata: choose genes "
            "first, then call setup_anndata and make a new model."
        )


def check_genes(wanted: Sequence[str] | None, there: Sequence[str]) -> None:
    """Raise KeyError unless genes of these names are there; scvi-tools leaves out others.

    ValueError for one name in the place of a list, and for an empty list.
    """
    if isinstance(wanted, str):
        raise ValueError(f"gene_list takes a list of genes: write gene_list=[{wanted!r}].")
    if wanted is not None and len(wanted) == 0:
        raise ValueError("gene_list names no gene: name at least one, or leave it out for all.")
    known = set(there)
    absent = [gene for gene in ([] if wanted is None else wanted) if gene not in known]
    if absent:
        raise KeyError(f"gene_list names {listing(quoted(absent))}, which adata does not have.")


def check_places(genes: Sequence[str], model_genes: Sequence[str]) -> None:
    """Raise ValueError if genes of a model's data are missing, or stand elsewhere.

    Other names in the same places pass: a user may have renamed the genes.
    """
    names, known = (np.asarray(g, dtype=str) for g in (genes, model_genes))
    if len(names) != len(known) or ((names != known) & np.isin(names, known)).any():
        check_query_genes(genes, model_genes)


def check_query_genes(query_genes: Sequence[str], model_genes: Sequence[str]) -> None:
    """Raise ValueError unless query cells have the model's genes, in its order."""
    if np.array_equal(np.asarray(query_genes, dtype=str), np.asarray(model_genes, dtype=str)):
        return
    there = set(query_genes)
    missing = [gene for gene in model_genes if gene not in there]
    detail = (
        f"{len(missing)} of the model's {len(model_genes)} genes are missing, "
        f"for example {missing[0]!r}"
        if missing
        else "its genes are not the model's genes in the model's order"
    )
    raise ValueError(
        f"the query data does not fit the model: {detail}. "
        "Run MixtureSCVI.prepare_query_anndata(adata, reference_model) first; genes that only have "
        "other names need the model's (adata.var_names)."
    )

"""Bad arguments, said in one sentence before anything is changed."""

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scvi.data._constants import ADATA_MINIFY_TYPE
from torch import Tensor

from scmixvi._messages import check_whole, is_number
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
    check_whole("n_components", n_components)
    check_whole("n_importance_samples", n_importance_samples)
    if not isinstance(mixture_weights, str):
        log_weights_from(mixture_weights, n_components)
    elif mixture_weights not in MIXTURE_WEIGHTS:
        raise ValueError(
            f"mixture_weights must be one of {list(MIXTURE_WEIGHTS)} or {n_components} "
            f"numbers that sum to 1, but it is {mixture_weights!r}."
        )


def check_refinement_steps(n_steps: Any, minified_data_type: str | None) -> None:
    """Raise ValueError unless each cell's posterior can be refined by that many steps."""
    check_whole("n_refinement_steps", n_steps, least=0)
    if n_steps > 0 and minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
        raise ValueError(
            "the data are minified without counts, which n_refinement_steps needs: load the model "
            "with the full data, or refine when you minify, minify_adata(n_refinement_steps=...)."
        )


def check_truth(name: str, value: Any) -> None:
    """Raise ValueError unless an argument is True or False; anything else would count as one."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, but it is {value!r}.")


def check_minification(
    minified_data_type: Any, now: str | None, use_observed_lib_size: bool
) -> None:
    """Raise what scvi-tools' `minify_adata` raises, before posteriors are computed for it.

    And ValueError for data that are `now` without counts, whose library sizes it would take to be
    0.
    """
    if minified_data_type not in ADATA_MINIFY_TYPE:
        raise NotImplementedError(
            f"minified_data_type must be one of {list(ADATA_MINIFY_TYPE)}, but it is "
            f"{minified_data_type!r}."
        )
    if not use_observed_lib_size:
        raise ValueError(
            "minify_adata needs observed library sizes, and this model's are latent: make it "
            "with use_observed_lib_size=True, or keep the full data."
        )
    if now == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
        raise ValueError(
            "the data are minified without counts already: load the model with the full data to "
            "minify them in another way."
        )


def check_holds_results(adata: Any) -> None:
    """Raise ValueError for a collection of files, which has no `obsm` to store scores in."""
    if adata.obsm is None:
        raise ValueError(
            "the scores are stored in adata.obsm, and a collection of files has none: pass an "
            "adata in memory, or score latents by get_aggregated_posterior(indices=...).log_prob."
        )


def check_in_memory(adata: Any) -> None:
    """Raise ValueError for data whose counts lie in files, which cannot be minified."""
    if adata is not None and (adata.obsm is None or getattr(adata, "isbacked", False)):
        raise ValueError(
            "minify_adata copies data without their counts, and here the counts lie in files: "
            "read the data into memory (anndata.read_h5ad), and load the saved model with them "
            "by MixtureSCVI.load(folder, adata)."
        )


def check_degrees_of_freedom(dof: Any) -> None:
    """Raise ValueError unless those of Student's t are a number above 0, or None for Gaussians."""
    if dof is not None and not (is_number(dof) and 0 < dof < np.inf):
        raise ValueError(
            "dof, the degrees of freedom, must be a finite number above 0, or None for Gaussians, "
            f"but it is {dof!r}."
        )


def check_jitter(jitter: Any) -> None:
    """Raise ValueError unless the relative size of the noise is a finite number of at least 0."""
    if not is_number(jitter) or not 0 <= jitter < np.inf:
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


def check_thinning(rate: Any, gene_likelihood: str) -> None:
    """Raise ValueError for a share of the counts that cannot be lost, or where there are none."""
    if not is_number(rate) or not 0 <= rate < 1:
        raise ValueError(
            f"thinning_rate must be a number of at least 0 and below 1, but it is {rate!r}."
        )
    if rate > 0 and gene_likelihood == "normal":
        raise ValueError(
            "thinning_rate takes away counts, and gene_likelihood='normal' is for data that are "
            "none: leave it at 0, or choose 'zinb', 'nb' or 'poisson'."
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


def check_is_data(adata: Any) -> None:
    """Raise TypeError for what is given in the place of cells, such as their positions."""
    if not hasattr(adata, "obs"):
        raise TypeError(
            f"adata must be an AnnData, but it is a {type(adata).__name__}: the cells to look at "
            "are named by indices=."
        )


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
        given = " ".join(repr(indices).split())
        given = given if len(given) <= 60 else f"{given[:57]}..."
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


def check_batch_size(batch_size: Any) -> int | None:
    """Return cells a minibatch as an int, for torch takes none of numpy's; None stays None."""
    if batch_size is None:
        return None
    check_whole("batch_size", batch_size)
    return int(batch_size)


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
    """Raise ValueError for a query and a reference in each other's place, or one without data."""
    if isinstance(adata, str | os.PathLike) or isinstance(reference_model, AnnData):
        raise ValueError(
            "load_query_data takes the query cells first and the reference model, or the folder "
            f"that it is saved in, second, but it is given a {type(adata).__name__} and a "
            f"{type(reference_model).__name__}."
        )
    if isinstance(adata, AnnData) and adata.n_obs == 0:  # which scvi-tools takes for none given
        raise ValueError("adata has no cells to map: choose some.")
    if getattr(reference_model, "module", True) is None:
        raise ValueError(
            "the reference model was made without data, so that it knows no genes to map onto: "
            "train it first, or load one with MixtureSCVI.load."
        )

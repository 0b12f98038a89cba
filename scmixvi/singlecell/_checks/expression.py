"""What normalised expression can be asked for, else one sentence."""

import math
from collections.abc import Iterable, Sized
from numbers import Real
from typing import Any

from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.model import SCVI

from scmixvi._messages import check_whole, listing

ARGUMENTS_OF_WEIGHTS = {
    "importance": ("max_cells", "n_mc_samples", "n_mc_samples_per_pass", "truncation"),
    "importance_by_cell": ("n_mc_samples", "n_mc_samples_per_pass", "n_refinement_steps"),
}
WEIGHTS = ("uniform", *ARGUMENTS_OF_WEIGHTS)


def check_expression(model: SCVI, given: dict[str, Any]) -> None:
    """Raise what :meth:`scmixvi.MixtureSCVI.get_normalized_expression` raises for its arguments.

    Parameters
    ----------
    model
        The model.
    given
        Those arguments that are not left to their defaults.
    """
    weights, chooses = given.get("weights"), given.get("n_samples_overall") is not None
    if weights not in (None, *WEIGHTS):
        raise ValueError(f"weights must be one of {list(WEIGHTS)}, but it is {weights!r}.")
    if chooses:
        check_whole("n_samples_overall", given["n_samples_overall"])
    library_size = given.get("library_size", 1)
    is_latent = isinstance(library_size, str) and library_size == "latent"
    is_size = isinstance(library_size, Real) and 0 < library_size < math.inf
    if not is_latent and not is_size:
        raise ValueError(
            f"library_size must be a finite number above 0 or 'latent', but it is {library_size!r}."
        )
    batches = given.get("transform_batch")
    if isinstance(batches, Sized) and not isinstance(batches, str) and len(batches) == 0:
        raise ValueError(
            "transform_batch is an empty list: name at least one batch, or leave it out for each "
            "cell's own."
        )
    known = ARGUMENTS_OF_WEIGHTS.get(weights, ()) if chooses else ()
    unknown = given.get("importance_weighting_kwargs", {}).keys() - set(known)
    if unknown:
        raise TypeError(_unknown_arguments(weights, chooses, sorted(unknown)))
    has_loader = given.get("dataloader") is not None
    counts_twice = chooses and given.get("n_samples", 1) != 1 and not has_loader
    if counts_twice and weights != "importance_by_cell":
        raise ValueError(
            "n_samples_overall counts draws of all cells together, and n_samples those of each: "
            "give one of them."
        )
    if chooses and weights in _CHECKS:
        _CHECKS[weights](model, given)


def _check_importance(model: SCVI, given: dict[str, Any]) -> None:
    likelihood = model.module.gene_likelihood
    if likelihood not in ("zinb", "nb"):
        raise ValueError(
            "weights='importance' needs gene_likelihood 'zinb' or 'nb', but this model's is "
            f"{likelihood!r}: leave `weights` out, or use 'importance_by_cell'."
        )
    if given.get("dataloader") is not None:
        raise NotImplementedError(
            "weights='importance' takes no dataloader: name the cells, by adata and indices."
        )


def _check_importance_by_cell(model: SCVI, given: dict[str, Any]) -> None:
    if model.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
        raise ValueError(
            "the data are minified without counts, which weights='importance_by_cell' needs: "
            "load the model with the full data, or leave `weights` out."
        )
    if is_left_to_scvi(given):
        raise NotImplementedError(
            "weights='importance_by_cell' takes neither a dataloader, nor n_samples, nor "
            "several batches in transform_batch: ask for each batch, and average."
        )


_CHECKS = {"importance": _check_importance, "importance_by_cell": _check_importance_by_cell}


def is_left_to_scvi(given: dict[str, Any]) -> bool:
    """Whether arguments of `get_normalized_expression` are none that draws are chosen for."""
    batches = given.get("transform_batch")
    several = isinstance(batches, Iterable) and not isinstance(batches, str)
    return (
        given.get("dataloader") is not None
        or (several and len(list(batches)) > 1)
        or given.get("n_samples", 1) != 1
    )


def _unknown_arguments(weights: str | None, chooses: bool, unknown: list[str]) -> str:
    """What is wrong with further arguments of `get_normalized_expression`, and what to do."""
    known = ARGUMENTS_OF_WEIGHTS.get(weights or "", ())
    if known and not chooses:
        return f"weights={weights!r} and {listing(unknown)} need n_samples_overall, how many draws."
    text = f"weights={weights!r} takes no {listing(unknown)}"
    if known:
        return f"{text}: its own arguments are {listing(known)}."
    if unknown == ["n_refinement_steps"]:
        return (
            f"{text}: store refined posteriors first, "
            "minify_adata('latent_posterior_parameters_with_counts', n_refinement_steps=...), or "
            "use weights='importance_by_cell'."
        )
    of_others = [name for name, own in ARGUMENTS_OF_WEIGHTS.items() if {*unknown} <= {*own}]
    if of_others:
        return f"{text}: it is an argument of weights={' and '.join(map(repr, of_others))}."
    return f"{text}: that is no argument of get_normalized_expression."

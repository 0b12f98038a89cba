"""Does it help biologists? MixtureSCVI beside SCVI, PCA and an ensemble, on three data sets.

Methods, all trained on 90 % of the cells with their own defaults, so with what a user gets:

pca
    50 principal components of log-normalised counts (the defaults of scanpy);
scvi
    scvi.model.SCVI;
warmup
    scvi.model.SCVI whose KL weight rises as fast as MixtureSCVI's, over a quarter of the epochs;
ensemble
    four SCVIs that differ in their seeds (the first is `scvi`), their latents side by side: as
    many encoder and decoder passes as the mixture;
mixture
    scmixvi.MixtureSCVI, S = 4, the mixture's mean ("X_mix");
one
    scmixvi.MixtureSCVI, S = 1: what differs from `scvi` without a mixture;
components
    the model with S = 4, its component means side by side: as many columns as the ensemble.

Data sets: cortex (1200 genes), sc_mixology (1200 genes, five batches, which the models know),
pbmc68k. Runs, for every seed:

DATASET/METHOD/scores
    scib-metrics: conservation of cell types, and where there are batches their removal;
DATASET/METHOD/null
    differential expression between random halves of the largest cell type, five times: the share
    of genes called at each false discovery rate, all of them false, and how large the genes'
    probabilities are;
DATASET/mixture/null, importance and null, importance_by_cell
    the same with importance weights, of all draws together and of each cell's;
DATASET/METHOD/ambiguous
    AUROC with which a score of a cell's posterior tells altered held-out cells from unaltered
    ones. Altered: "doublet" (the sum of the counts of two held-out cells of different types and
    the same batch), "doublet, thinned" (half of those counts, at random, so that depth gives
    nothing away) and "thinned" (a fifth of the counts of a cell). Scores: entropy of q (Monte
    Carlo), its total variance, JSD of the components, and the total count, which needs no model;
DATASET/METHOD/against=OTHER
    agreement with a smaller seed that has been run before: ARI between Leiden clusterings, and
    of log-fold changes of every cell type against the rest the Spearman correlation over genes and
    the overlap of the top 50, averaged over types. An ensemble averages its members' changes.
    Seeds differ in their initialisation and in which tenth of the cells is held out.

    pip install ".[experiments]"
    python -m scmixvi.experiments.integration --seed 0
"""

import importlib.util
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from scmixvi.experiments._cells import biology
from scmixvi.experiments._cells import training as singlecell
from scmixvi.experiments._cells.methods import BATCH, LABEL, Methods, Protocol, data_sets
from scmixvi.experiments._common import (
    by_seed,
    parse,
    place_of,
    recorded,
    run_missing,
    trained,
)
from scmixvi.singlecell._queries.expression import CHOICES

RESULT = Path(__file__).parent / "results" / "integration.json"
PAPER = Protocol()
SMOKE = Protocol(2, 150, 1, 5, 10)


# ---------------------------------------------------------------- jobs


def scores(methods: Methods, method: str) -> dict:
    """Cell types and batches, by scib-metrics."""
    fitted = methods(method)
    return biology.scib_scores(fitted.adata, fitted.embedding, LABEL, BATCH)


def null(methods: Methods, method: str, weights: str) -> dict:
    """False calls of differential expression where there is none."""
    fitted, seed = methods(method), methods.arguments.seed
    return biology.null_calls(fitted.models[0], LABEL, methods.protocol.n_splits, seed, weights)


def ambiguous(methods: Methods, method: str) -> dict:
    """AUROC of altered held-out cells."""
    fitted, seed = methods(method), methods.arguments.seed
    rng = np.random.default_rng(seed)
    cells = fitted.adata[fitted.held_out].copy()
    altered = biology.altered_cells(cells, LABEL, BATCH, rng)
    original = biology.ambiguity(fitted.models, cells, methods.protocol.n_draws)
    found = {}
    for kind, changed in altered.items():
        scores_of = biology.ambiguity(fitted.models, changed, methods.protocol.n_draws)
        found[kind] = {
            name: round(biology.auroc(original[name], scores_of[name]), 4) for name in original
        }
    return found | {"n_held_out": len(fitted.held_out)}


def outcome(methods: Methods, method: str) -> dict[str, torch.Tensor]:
    """What is compared between seeds: clusters `[n]`, log-fold changes `[types, G]`; kept."""

    def compute() -> dict[str, torch.Tensor]:
        fitted, seed = methods(method), methods.arguments.seed
        found = {"clusters": torch.from_numpy(biology.leiden(fitted.embedding, seed))}
        if fitted.models and method != "components":
            changes = [biology.fold_changes(m, LABEL) for m in fitted.models]
            found["changes"] = torch.from_numpy(np.mean(changes, axis=0))
        return found

    return trained(methods.arguments, f"{methods.name}/{method}/outcome", compute)


def against(methods: Methods, method: str, other: int) -> dict:
    """Agreement with the outcome of another seed."""
    here = outcome(methods, method)
    there = torch.load(_place_of_outcome(methods, method, other), weights_only=True)
    found = {"ari": biology.agreement(here["clusters"], there["clusters"])}
    if "changes" in here:
        found |= biology.rank_agreement(
            here["changes"].numpy(), there["changes"].numpy(), methods.protocol.n_top
        )
    return found


def _place_of_outcome(methods: Methods, method: str, seed: int) -> Path:
    elsewhere = Namespace(**{**vars(methods.arguments), "seed": seed})
    return place_of(elsewhere, f"{methods.name}/{method}/outcome")


def _is_kept(methods: Methods, method: str, seed: int) -> bool:
    """Whether another seed's outcome is still there; the JSON does not hold it."""
    kept = _place_of_outcome(methods, method, seed).exists()
    if not kept:
        print(
            f"{methods.name}/{method}: the file of seed {seed}'s clusters is gone, so that nothing "
            "new is compared with them. Delete that seed's runs from the JSON to run it again."
        )
    return kept


def jobs(methods: Methods, seeds_before: list[int], with_scib: bool) -> dict[str, Callable]:
    """All jobs on one data set, in an order in which methods are fitted one after another."""
    found: dict[str, Callable[[], dict]] = {}
    for method in ("pca", "scvi", "warmup", "one", "mixture", "components", "ensemble"):
        here = f"{methods.name}/{method}"
        if with_scib:
            found[f"{here}/scores"] = partial(scores, methods, method)
        if method in ("scvi", "mixture"):
            found[f"{here}/null"] = partial(null, methods, method, "uniform")
        if method == "mixture":
            for weights in CHOICES:
                found[f"{here}/null, {weights}"] = partial(null, methods, method, weights)
        if method in ("scvi", "mixture", "ensemble"):
            found[f"{here}/ambiguous"] = partial(ambiguous, methods, method)
        found[f"{here}/outcome"] = partial(_summary, methods, method)
        for other in seeds_before:
            if not _is_kept(methods, method, other):
                continue
            found[f"{here}/against={other}"] = partial(against, methods, method, other)
    return found


def _summary(methods: Methods, method: str) -> dict:
    return {"n_clusters": int(outcome(methods, method)["clusters"].max()) + 1}


def has_scib() -> bool:
    """Whether scib-metrics is installed."""
    return importlib.util.find_spec("scib_metrics") is not None


def main(argv: list[str] | None = None) -> None:
    """Run what is not yet in the JSON for this seed.

    Raises
    ------
    ModuleNotFoundError
        If scib-metrics is missing; a smoke run goes without.
    """
    arguments = parse(__doc__, RESULT, argv)
    protocol = SMOKE if arguments.smoke else PAPER
    with_scib = has_scib()
    if not with_scib and not arguments.smoke:
        raise ModuleNotFoundError(
            'this experiment scores with scib-metrics: pip install ".[experiments]" from a clone.'
        )
    singlecell.quiet()
    for name, load in data_sets(protocol).items():
        methods = Methods(arguments, name, load(), protocol)
        before = by_seed(
            recorded(arguments.result, arguments.smoke)["runs"], f"{name}/ensemble/outcome"
        )
        smaller = [seed for seed in before if seed < arguments.seed]
        run_missing(arguments, jobs(methods, smaller, with_scib))


if __name__ == "__main__":
    main()

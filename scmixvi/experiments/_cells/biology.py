"""What a biologist asks of a representation: types and batches, stability, calls, ambiguity."""

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr
from scvi.model import SCVI
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from torch.distributions import Independent, Normal

from scmixvi import MixtureSCVI
from scmixvi.core import MixturePosterior, Stage, jsd, log_mixture

FDR_LEVELS = (0.05, 0.1, 0.2)
DOUBLET_SHARE, THINNED_SHARE = 0.5, 0.2


def principal_components(adata: ad.AnnData, seed: int, n: int = 50) -> np.ndarray:
    """Principal components of log-normalised counts, `(n_cells, n)` or fewer."""
    normalised = ad.AnnData(adata.X.copy())
    sc.pp.normalize_total(normalised)
    sc.pp.log1p(normalised)
    sc.pp.pca(normalised, n_comps=min(n, *np.subtract(adata.shape, 1)), random_state=seed)
    return normalised.obsm["X_pca"]


def leiden(embedding: np.ndarray, seed: int) -> np.ndarray:
    """Clusters at resolution 1 of the graph of 15 nearest neighbours, numbered from 0."""
    graph = ad.AnnData(np.zeros((len(embedding), 1), np.float32), obsm={"X": embedding})
    sc.pp.neighbors(graph, use_rep="X", n_neighbors=15, random_state=seed)
    sc.tl.leiden(graph, resolution=1.0, flavor="igraph", n_iterations=2, random_state=seed)
    return graph.obs["leiden"].astype(int).to_numpy()


def scib_scores(
    adata: ad.AnnData, embedding: np.ndarray, label: str, batch: str
) -> dict[str, float]:
    """Scores of scib-metrics, 0 to 1, higher is better; without batches only of the labels.

    Their averages are "Bio conservation", "Batch correction" and (0.6 and 0.4 of these) "Total".
    """
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    has_batches = batch in adata.obs
    batches = adata.obs[batch].astype(str).to_numpy() if has_batches else "one"
    data = ad.AnnData(
        adata.X,
        obs=pd.DataFrame({"label": adata.obs[label].astype(str), "batch": batches}),
        obsm={"embedding": embedding, "before": principal_components(adata, 0)},
    )
    data.obs = data.obs.astype("category")
    benchmark = Benchmarker(
        data,
        batch_key="batch",
        label_key="label",
        embedding_obsm_keys=["embedding"],
        # An isolated label is one that few batches have.
        bio_conservation_metrics=BioConservation(isolated_labels=has_batches),
        batch_correction_metrics=BatchCorrection() if has_batches else None,
        pre_integrated_embedding_obsm_key="before",
        progress_bar=False,
    )
    benchmark.benchmark()
    row = benchmark.get_results(min_max_scale=False).loc["embedding"]
    return {name: round(float(value), 4) for name, value in row.items()}


# ---------------------------------------------------------------- differential expression


def fold_changes(model: SCVI, label: str) -> np.ndarray:
    """Log2-fold change of every gene, every cell type against the rest, `(types, G)`."""
    table = model.differential_expression(groupby=label, mode="change", silent=True)
    genes = model.adata.var_names
    return np.stack(
        [
            group["lfc_mean"].reindex(genes).to_numpy(np.float32)
            for _, group in table.groupby("comparison", sort=True)
        ]
    )


def rank_agreement(first: np.ndarray, second: np.ndarray, n_top: int) -> dict[str, float]:
    """Agreement of two tables of changes `(types, G)`, averaged over types.

    `de_spearman` is the correlation of ranks over all genes, `de_top_overlap` the share of the
    n_top genes of largest change that both have.
    """
    pairs = list(zip(first, second, strict=True))
    tops = [[set(np.argsort(-row)[:n_top]) for row in pair] for pair in pairs]
    return {
        "de_spearman": round(float(np.mean([spearmanr(a, b).statistic for a, b in pairs])), 4),
        "de_top_overlap": round(float(np.mean([len(a & b) / n_top for a, b in tops])), 4),
    }


def called(probability: np.ndarray, level: float) -> np.ndarray:
    """Which genes are called at an expected false discovery rate, `[G]`.

    The longest list by descending probability whose average of 1 - probability is within `level`.
    """
    order = np.argsort(1 - probability, kind="stable")
    expected = np.cumsum((1 - probability)[order]) / np.arange(1, len(order) + 1)
    calls = np.zeros(len(order), dtype=bool)
    calls[order[: int((expected <= level).sum())]] = True
    return calls


def null_calls(
    model: SCVI, label: str, n_splits: int, seed: int, weights: str = "uniform"
) -> dict[str, list[float]]:
    """Differential expression between random halves of the largest cell type, where there is none.

    Parameters
    ----------
    model
        Trained.
    label
        Column of obs with cell types.
    n_splits
        Random halves, each compared once.
    seed
        Of the halves.
    weights
        As in `differential_expression`.

    Returns
    -------
    For every split the share of genes called at each false discovery rate (the rate itself as
    key), all of them false, and over genes the median, the 95 % quantile (`p95`) and the maximum
    (`largest`) of the probability to be differentially expressed.
    """
    labels = model.adata.obs[label]
    cells = np.flatnonzero(labels == labels.value_counts().index[0])
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n_splits):
        first, second = np.array_split(rng.permutation(cells), 2)
        table = model.differential_expression(
            idx1=first, idx2=second, mode="change", silent=True, weights=weights
        )
        probability = table["proba_de"].to_numpy()
        shares = {str(level): called(probability, level).mean() for level in FDR_LEVELS}
        quantiles = np.quantile(probability, (0.5, 0.95, 1))
        rows.append(shares | dict(zip(("median", "p95", "largest"), quantiles, strict=True)))
    return {name: [round(float(row[name]), 5) for row in rows] for name in rows[0]}


# ---------------------------------------------------------------- ambiguous cells


def altered_cells(
    cells: ad.AnnData, label: str, batch: str, rng: np.random.Generator
) -> dict[str, ad.AnnData]:
    """Doublets, doublets at the depth of one cell, and thinned cells; see `integration`."""
    counts, types = csr_matrix(cells.X), cells.obs[label].astype(str).to_numpy()
    batches = np.array(cells.obs[batch].astype(str) if batch in cells.obs else [""] * len(types))
    pairs = []
    for i in range(len(types)):
        partners = np.flatnonzero((types != types[i]) & (batches == batches[i]))
        if len(partners):
            pairs.append((i, rng.choice(partners)))
    first, second = np.array(pairs).T
    doublets = csr_matrix(counts[first] + counts[second])
    return {
        "doublet": _cells_like(cells, doublets, first),
        "doublet, thinned": _cells_like(cells, thinned(doublets, DOUBLET_SHARE, rng), first),
        "thinned": _cells_like(cells, thinned(counts, THINNED_SHARE, rng), np.arange(len(types))),
    }


def thinned(counts: csr_matrix, share: float, rng: np.random.Generator) -> csr_matrix:
    """Keep every count with probability `share` (binomial down-sampling)."""
    result = counts.copy()
    result.data = rng.binomial(counts.data.astype(int), share).astype(np.float32)
    return result


def _cells_like(cells: ad.AnnData, counts: csr_matrix, rows: np.ndarray) -> ad.AnnData:
    """Cells with these counts and the annotation of `rows`, without those that lost all."""
    some = np.flatnonzero(counts.sum(axis=1).A1 > 0)
    obs = cells.obs.iloc[rows[some]].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return ad.AnnData(counts[some], obs=obs, var=cells.var)


def posterior(model: SCVI, cells: ad.AnnData) -> MixturePosterior:
    """q(z|x) of cells that the model need not know; of SCVI a mixture of one."""
    if isinstance(model, MixtureSCVI):
        params = model.get_latent_representation(cells, representation="params")
        loc, variance = np.split(params, 2, axis=1)
    else:
        loc, variance = model.get_latent_representation(cells, return_dist=True)
    shape = (len(loc), -1, model.module.n_latent)
    loc, scale = (
        torch.from_numpy(part.reshape(shape)).transpose(0, 1) for part in (loc, np.sqrt(variance))
    )
    return MixturePosterior([Stage(lambda: Independent(Normal(loc, scale), 1))])


def ambiguity(models: Sequence[SCVI], cells: ad.AnnData, n_draws: int) -> dict[str, np.ndarray]:
    """How unsure the models are of every cell, averaged over them; and the total count."""
    found = [_ambiguity(posterior(model, cells), n_draws) for model in models]
    scores = {name: np.mean([f[name] for f in found], axis=0) for name in found[0]}
    return scores | {"total count": cells.X.sum(axis=1).A1}


def _ambiguity(q: MixturePosterior, n_draws: int) -> dict[str, np.ndarray]:
    _, log_q_all = q.sample_stratified(n_draws)
    found = {
        "entropy": -log_mixture(log_q_all).mean((0, 1)),
        "variance": q.variance.sum(-1),
    }
    if log_q_all.shape[1] > 1:
        found["JSD"] = jsd(log_q_all)
    return {name: value.numpy() for name, value in found.items()}


def auroc(original: np.ndarray, altered: np.ndarray) -> float:
    """Chance that a score is higher for an altered cell than for an original one."""
    truth = np.repeat([0, 1], [len(original), len(altered)])
    return float(roc_auc_score(truth, np.concatenate([original, altered])))


def agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    """Adjusted Rand index of two clusterings."""
    return round(float(adjusted_rand_score(first.numpy(), second.numpy())), 4)

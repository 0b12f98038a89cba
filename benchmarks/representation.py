"""Which representation to store, and where to use batch norm: evidence for the two defaults.

Trains MixtureSCVI with S = 1 and S = 4 under every `use_batch_norm` on three data sets and
three seeds, and records for each run

- held-out bounds in nats a cell: MISELBO and importance-sampled log-likelihood (200 draws);
- for every representation ("mean", "components", "params"): ARI and NMI of Leiden (resolution 1)
  and k-means clusters, silhouette of label (scaled to 0..1) and of batch (1 is mixed, within
  labels), and the accuracy of a 15-nearest-neighbour classifier (5-fold cross-validation).

    python -m benchmarks.representation                 # everything that is not yet in the JSON
    python -m benchmarks.representation --table         # print the means of what is there
"""

import argparse
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from scvi.dataloaders import DeviceBackedDataSplitter
from sklearn.cluster import KMeans
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scmixvi
from benchmarks import RESULTS
from scmixvi.records import environment, read, write

RESULT = RESULTS / "representation.json"
SEEDS = (0, 1, 2)
COMPONENTS = (1, 4)
BATCH_SIZE = 128
TRAIN_SIZE = 0.85
N_STEPS = 2000
MAX_EPOCHS = 150


def load(name: str) -> tuple[ad.AnnData, str, str | None]:
    """Counts, the column of labels, the column of batches."""
    if name == "cortex":
        return scmixvi.datasets.cortex(), "cell_type", None
    if name == "pbmc68k":
        return scmixvi.datasets.pbmc68k(), "bulk_labels", None
    adata = scmixvi.datasets.sc_mixology()
    variance = adata.X.power(2).mean(0).A1 - np.square(adata.X.mean(0).A1)
    return adata[:, np.sort(np.argsort(-variance)[:1200])].copy(), "cell_type", "batch"


def train(
    adata: ad.AnnData, batch_key: str | None, seed: int, batch_norm: str, n_components: int
) -> scmixvi.MixtureSCVI:
    """Train one model on 85 % of the cells; the rest is held out."""
    scvi.settings.seed = seed
    scmixvi.MixtureSCVI.setup_anndata(adata, batch_key=batch_key)
    model = scmixvi.MixtureSCVI(adata, n_components=n_components, use_batch_norm=batch_norm)
    steps = int(np.ceil(TRAIN_SIZE * adata.n_obs / BATCH_SIZE))
    splitter = DeviceBackedDataSplitter(
        model.adata_manager,
        train_size=TRAIN_SIZE,
        validation_size=1 - TRAIN_SIZE,
        shuffle=True,
        batch_size=BATCH_SIZE,
    )
    model.train(
        max_epochs=min(MAX_EPOCHS, N_STEPS // steps),
        datamodule=splitter,
        enable_progress_bar=False,
    )
    return model


def scores(latent: np.ndarray, labels: pd.Series, batches: pd.Series | None) -> dict[str, float]:
    """Scores of one representation; higher is better for all."""
    codes = labels.astype("category").cat.codes.to_numpy()
    graph = ad.AnnData(np.zeros((len(latent), 1), dtype=np.float32), obsm={"X": latent})
    sc.pp.neighbors(graph, use_rep="X", n_neighbors=15)
    sc.tl.leiden(graph, flavor="igraph", n_iterations=2, resolution=1.0)
    kmeans = KMeans(codes.max() + 1, n_init=10, random_state=0).fit_predict(latent)
    found = {"leiden": graph.obs["leiden"].to_numpy(), "kmeans": kmeans}
    result = {}
    for name, clusters in found.items():
        result[f"ari_{name}"] = adjusted_rand_score(codes, clusters)
        result[f"nmi_{name}"] = normalized_mutual_info_score(codes, clusters)
    result["silhouette_label"] = (1 + silhouette_score(latent, codes)) / 2
    classifier = KNeighborsClassifier(15)
    result["knn_accuracy"] = cross_val_score(classifier, latent, codes, cv=5).mean()
    if batches is not None:
        result["silhouette_batch"] = _batch_silhouette(latent, codes, batches.to_numpy())
    return {name: round(float(value), 5) for name, value in result.items()}


def _batch_silhouette(latent: np.ndarray, codes: np.ndarray, batches: np.ndarray) -> float:
    """1 - |silhouette of batch|, averaged within each label, then over labels."""
    by_label = []
    for code in np.unique(codes):
        rows = codes == code
        if len(np.unique(batches[rows])) > 1:
            widths = np.abs(silhouette_samples(latent[rows], batches[rows]))
            by_label.append(1 - widths.mean())
    return float(np.mean(by_label))


def run(dataset: str, seed: int, batch_norm: str, n_components: int) -> dict:
    """One training run and all its figures."""
    adata, label_key, batch_key = load(dataset)
    model = train(adata, batch_key, seed, batch_norm, n_components)
    held_out = model.validation_indices
    result = {
        "n_epochs": len(model.history_["elbo_train"]),
        "miselbo": float(np.mean([float(model.get_elbo(indices=held_out)) for _ in range(10)])),
        "log_likelihood": float(model.get_marginal_ll(indices=held_out, n_mc_samples=200)),
        "jsd": float(model.get_posterior_diversity(indices=held_out).mean()),
        "scores": {},
    }
    batches = None if batch_key is None else adata.obs[batch_key]
    representations = ("mean", "params") if n_components == 1 else ("mean", "components", "params")
    for representation in representations:
        latent = model.get_latent_representation(representation=representation)
        result["scores"][representation] = scores(latent, adata.obs[label_key], batches)
    return result


def key(dataset: str, seed: int, batch_norm: str, n_components: int) -> str:
    """Name of a run in the JSON."""
    return f"{dataset}/bn={batch_norm}/S={n_components}/seed={seed}"


def grid(datasets: list[str]) -> Iterator[tuple[str, int, str, int]]:
    """All runs; "encoder", which lies between the other two, comes last."""
    for batch_norms in (("both", "none"), ("encoder",)):
        for seed, dataset in itertools.product(SEEDS, datasets):
            for batch_norm, n_components in itertools.product(batch_norms, COMPONENTS):
                yield dataset, seed, batch_norm, n_components


def table(content: dict) -> None:
    """Print means over seeds."""
    rows = []
    for name, result in content["runs"].items():
        dataset, batch_norm, n_components, seed = name.split("/")
        base = {"data": dataset, "bn": batch_norm[3:], "S": n_components[2:], "seed": seed}
        rows.append(base | {k: result[k] for k in ("miselbo", "log_likelihood", "jsd")})
        for representation, values in result["scores"].items():
            rows.append(base | {"representation": representation} | values)
    frame = pd.DataFrame(rows)
    bounds = frame[frame["miselbo"].notna()].dropna(axis=1, how="all")
    quality = frame[frame["miselbo"].isna()].dropna(axis=1, how="all")
    with pd.option_context("display.width", 200, "display.max_columns", 30):
        grouped = bounds.groupby(["data", "bn", "S"])
        print(grouped[["miselbo", "log_likelihood", "jsd"]].mean().round(2))
        measures = [c for c in quality.columns if "_" in c]
        grouped = quality.groupby(["data", "bn", "S", "representation"])
        print(grouped[measures].mean().round(3).to_string())


def main() -> None:
    """Run what is missing, one JSON write a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["cortex", "sc_mixology", "pbmc68k"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="print the means and stop")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.table:
        return table(read(arguments.result, None))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for settings in grid(arguments.datasets):
        content = read(arguments.result, {"runs": {}})
        if key(*settings) not in content["runs"]:
            # scanpy's neighbour search gives OpenMP all cores again, which slows what follows.
            torch.set_num_threads(arguments.threads)
            print(key(*settings), flush=True)
            content["runs"][key(*settings)] = run(*settings)
            write(arguments.result, {"environment": environment(), "runs": content["runs"]})
    return None


if __name__ == "__main__":
    main()

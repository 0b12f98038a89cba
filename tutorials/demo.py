"""Train MixtureSCVI on real PBMC counts and compare it with scVI: `make demo`.

The data come with scanpy, so nothing is downloaded. Three models learn from the same cells with
the same settings: a mixture of four encoders, the same code with one encoder, and scvi-tools' own
SCVI. The table compares them on cells that none of them saw. Written to the output folder:

pbmc68k.h5ad    counts, latents (obsm), clusters and posterior diversity (obs)
umap.png        UMAP of the mixture's latents, coloured by cell type and by posterior diversity
results.json    the table, and what it was made with
"""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import scanpy as sc
import scvi
import torch
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import scmixvi
from scmixvi.records import environment

LABELS = "bulk_labels"
N_BOUND_DRAWS = 50
"""Passes over which a model's bound is averaged; each draws once from every component."""


def main() -> None:
    """Train, compare, and write what was found."""
    arguments = parse_arguments()
    quieten()
    adata = scmixvi.datasets.pbmc68k()
    print(f"pbmc68k: {adata.n_obs} cells x {adata.n_vars} genes of raw counts, {LABELS} as labels")
    start = time.perf_counter()
    machine = environment()  # here, for clustering takes more threads than training
    mixture = scmixvi.MixtureSCVI
    models = {
        f"MixtureSCVI, S = {arguments.n_components}": (
            mixture,
            {"n_components": arguments.n_components},
            "X_mix",
        ),
        "MixtureSCVI, S = 1": (mixture, {"n_components": 1}, "X_mix_1"),
        "scvi.model.SCVI": (scvi.model.SCVI, {}, "X_scVI"),
    }
    rows = {}
    for name, (cls, own, latent_key) in models.items():
        print(f"\n{name}: training", flush=True)
        model = train(cls, own, adata, arguments)
        adata.obsm[latent_key] = model.get_latent_representation()
        rows[name] = held_out_scores(model)
        if cls is mixture:
            diversity = model.get_posterior_diversity()
            rows[name]["JSD"] = float(diversity.mean())
        if latent_key == "X_mix":
            adata.obs["posterior_diversity"] = diversity
    for name, (_, _, latent_key) in models.items():
        rows[name] |= cluster_scores(adata, latent_key)
    draw(adata, arguments.output)
    write(adata, rows, arguments, machine)
    print_table(rows, arguments)
    print(f"{time.perf_counter() - start:.0f} seconds; see {arguments.output}/")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--n-components", type=int, default=4, metavar="S")
    parser.add_argument("--max-epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def quieten() -> None:
    """Leave the progress bars and the table; hide hints that are about other settings."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "scvi", "scmixvi"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train(
    cls: type[scvi.model.SCVI], own: dict, adata: AnnData, arguments: argparse.Namespace
) -> scvi.model.SCVI:
    """One model: 70 % of the cells to learn from, 10 % to stop by, 20 % kept aside."""
    scvi.settings.seed = arguments.seed
    cls.setup_anndata(adata)
    model = cls(adata, **own)
    model.train(
        max_epochs=arguments.max_epochs,
        train_size=0.7,
        validation_size=0.1,
        early_stopping=True,
        early_stopping_patience=30,
        plan_kwargs={"n_epochs_kl_warmup": arguments.max_epochs // 4},
    )
    return model


def held_out_scores(model: scvi.model.SCVI) -> dict[str, list[float]]:
    """The bound and log p(x) of every cell kept aside, in nats."""
    test = {"indices": model.test_indices, "batch_size": len(model.test_indices)}
    bounds = [model.get_elbo(return_mean=False, **test) for _ in range(N_BOUND_DRAWS)]
    evidence = model.get_marginal_ll(n_mc_samples=1000, return_mean=False, **test)
    return {"bound": torch.stack(bounds).mean(0).tolist(), "log p(x)": evidence.tolist()}


def cluster_scores(adata: AnnData, latent_key: str) -> dict[str, float]:
    """Agreement of Leiden clusters on the latents with the cell types."""
    sc.pp.neighbors(adata, use_rep=latent_key)
    leiden = {"flavor": "igraph", "n_iterations": 2, "directed": False}
    sc.tl.leiden(adata, key_added=f"leiden_{latent_key}", random_state=0, **leiden)
    labels, clusters = adata.obs[LABELS], adata.obs[f"leiden_{latent_key}"]
    return {
        "ARI": float(adjusted_rand_score(labels, clusters)),
        "NMI": float(normalized_mutual_info_score(labels, clusters)),
    }


def draw(adata: AnnData, folder: Path) -> None:
    """UMAP of the mixture's latents."""
    sc.pp.neighbors(adata, use_rep="X_mix")
    sc.tl.umap(adata, random_state=0)
    path = folder / "umap.png"
    scmixvi.pl.posterior_diversity(adata, LABELS, frameon=False, show=False, save=path)


def write(adata: AnnData, rows: dict, arguments: argparse.Namespace, machine: dict) -> None:
    """Write the data and the numbers, with what made them."""
    adata.write_h5ad(arguments.output / "pbmc68k.h5ad")
    made_with = {
        "seed": arguments.seed,
        "max_epochs": arguments.max_epochs,
        "environment": machine,
    }
    content = json.dumps({"made_with": made_with, "models": rows}, indent=1)
    (arguments.output / "results.json").write_text(content + "\n")


def print_table(rows: dict, arguments: argparse.Namespace) -> None:
    """The comparison, and how sure it is: differences are paired, cell by cell."""
    n_cells = len(next(iter(rows.values()))["bound"])
    header = f"{'':22}{'MISELBO':>10}{'log p(x)':>10}{'ARI':>7}{'NMI':>7}{'JSD':>7}"
    print(f"\n{n_cells} held-out cells; nats a cell, higher is better\n{header}")
    for name, row in rows.items():
        diversity = f"{row['JSD']:7.2f}" if "JSD" in row else f"{'-':>7}"
        bound, evidence = np.mean(row["bound"]), np.mean(row["log p(x)"])
        print(
            f"{name:22}{bound:10.2f}{evidence:10.2f}{row['ARI']:7.2f}{row['NMI']:7.2f}{diversity}"
        )
    first, *others = rows
    for other in others:
        gain = np.subtract(rows[first]["log p(x)"], rows[other]["log p(x)"])
        error = gain.std(ddof=1) / np.sqrt(n_cells)
        print(f"log p(x), {first} minus {other}: {gain.mean():+.2f} +- {error:.2f} nats a cell")
    print(
        "MISELBO is the ELBO for one encoder. log p(x): 1000 importance samples a cell. ARI, NMI:\n"
        f"Leiden clusters against {LABELS}. JSD: mean posterior diversity in nats, at most "
        f"log {arguments.n_components} = {np.log(arguments.n_components):.2f}.\n"
        "+- is the standard error over the held-out cells of this one seed."
    )


if __name__ == "__main__":
    main()

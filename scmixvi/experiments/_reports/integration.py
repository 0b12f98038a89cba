"""Tables of the integration experiment."""

from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments._common import NOT_RUN, by_seed, cell, markdown
from scmixvi.experiments._reports.tables import Runs, finish, joined, pick, seeds

DATA_SETS = ("cortex", "sc_mixology", "pbmc68k")
METHODS = {
    "pca": "PCA",
    "scvi": "SCVI",
    "warmup": "SCVI, short KL warm-up",
    "ensemble": "4 SCVIs",
    "one": "MixtureSCVI, S = 1",
    "mixture": "MixtureSCVI, mean",
    "components": "MixtureSCVI, components",
}


def integration_tables(runs: Runs) -> str:
    """All tables of the integration experiment."""
    parts = [
        f"{seeds(runs)} Mean ± half the 95 % t-interval over seeds.",
        "**scib-metrics** of all cells, nine tenths of which the models were trained on, 0 to 1, "
        "higher is better; `-` where there are no batches. PCA depends on no seed.",
        scib_table(runs),
        "**Agreement between seeds**: ARI of Leiden clusters; of log-fold changes the Spearman "
        "correlation and the overlap of the top 50. Mean over pairs of seeds, and their range: "
        "pairs share seeds, so no interval is given.",
        stability_table(runs),
        "**Null differential expression**: share of genes called between random halves of one "
        "cell type, in per cent; all are false. p is a gene's probability to be differentially "
        "expressed: its median over genes, its 95 % quantile and its maximum.",
        null_table(runs),
        "**Which cells are ambiguous**: AUROC of altered against unaltered held-out cells; 0.5 is "
        "chance, below it the score falls where it should rise.",
        ambiguity_table(runs),
    ]
    return joined(parts)


def scib_table(runs: Runs) -> str:
    """Average scores of every data set and method."""
    rows = []
    for data in DATA_SETS:
        for method, label in METHODS.items():
            found = by_seed(runs, f"{data}/{method}/scores").values()
            row = [data, label]
            for name in ("Bio conservation", "Batch correction", "Total"):
                values = [run[name] for run in found if name in run]
                values = values[:1] if method == "pca" else values  # no seed enters it
                row.append("-" if found and not values else cell(values, 3))
            rows.append(row)
    return markdown(["", "", "bio-conservation", "batch correction", "total"], rows)


def spread(values: list[float]) -> str:
    """Mean and range."""
    if not values:
        return NOT_RUN
    mean = sum(values) / len(values)
    return f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def stability_table(runs: Runs) -> str:
    """Agreement over all pairs of seeds."""
    rows = []
    for data in DATA_SETS:
        for method, label in METHODS.items():
            prefix = f"{data}/{method}/against="
            found = [run for key, run in runs.items() if key.startswith(prefix)]
            row = [data, label]
            for name in ("ari", "de_spearman", "de_top_overlap"):
                values = [run[name] for run in found if name in run]
                row.append("-" if found and not values else spread(values))
            rows.append([*row, len(found)])
    header = ["", "", "ARI of clusters", "DE, Spearman", "DE, overlap of top 50", "pairs"]
    return markdown(header, rows)


NULL_JOBS = {
    "scvi/null": "SCVI",
    "mixture/null": "MixtureSCVI",
    "mixture/null, importance": "MixtureSCVI, importance weights",
    "mixture/null, importance_by_cell": "MixtureSCVI, importance weights by cell",
}


def null_table(runs: Runs) -> str:
    """False calls and the genes' probabilities, averaged over splits, then over seeds."""
    columns = ("0.05", "0.1", "0.2", "median", "p95", "largest")
    rows = []
    for data in DATA_SETS:
        for job, label in NULL_JOBS.items():
            found = by_seed(runs, f"{data}/{job}").values()
            row = [data, label]
            for name in columns:
                means = [sum(run[name]) / len(run[name]) for run in found if name in run]
                is_share = name.startswith("0.")
                row.append(cell(means, 2, 100 if is_share else 1))
            rows.append([*row, len(found)])
    header = ["at FDR 0.05", "at FDR 0.1", "at FDR 0.2", "median p", "95 % of p", "largest p"]
    return markdown(["", "", *header, "seeds"], rows)


def ambiguity_table(runs: Runs) -> str:
    """AUROC of every score and kind of altered cell."""
    kinds = ("doublet", "doublet, thinned", "thinned")
    scores = {
        "scvi": ("entropy", "variance"),
        "ensemble": ("entropy", "variance"),
        "mixture": ("JSD", "entropy", "variance", "total count"),
    }
    rows = []
    for data in DATA_SETS:
        for method, names in scores.items():
            found = by_seed(runs, f"{data}/{method}/ambiguous").values()
            label = METHODS[method].partition(",")[0]
            for name in names:
                values = [[run[kind][name] for run in found] for kind in kinds]
                owner = "no model" if name == "total count" else label
                rows.append([data, owner, name, *(cell(v, 3) for v in values)])
    return markdown(["", "", "score", *kinds], rows)


def integration_figure(runs: Runs, path: Path) -> None:
    """Every seed's bio-conservation by method, a panel a data set; batch correction where it is."""
    fig, axes = plt.subplots(1, len(DATA_SETS), figsize=(3.2 * len(DATA_SETS), 3), sharey=True)
    for ax, data in zip(axes, DATA_SETS, strict=True):
        empty = True
        for name, marker in (("Bio conservation", "o"), ("Batch correction", "^")):
            found = {m: list(pick(runs, f"{data}/{m}/scores", name).values()) for m in METHODS}
            points = [(v, place) for place, m in enumerate(METHODS) for v in found[m]]
            if points:
                ax.scatter(*zip(*points, strict=True), marker=marker, alpha=0.6, label=name)
                empty = False
        if empty:
            ax.text(0.5, 0.5, NOT_RUN, ha="center", transform=ax.transAxes)
        ax.set(title=data, xlabel="score, higher is better")
        ax.set_yticks(range(len(METHODS)), list(METHODS.values()))
    axes[0].invert_yaxis()
    finish(fig, sorted(axes, key=lambda ax: -len(ax.collections)), path)

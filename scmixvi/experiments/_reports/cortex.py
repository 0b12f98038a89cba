"""Tables 6, 9 and 10 of the paper beside ours, at equal feature count, and held-out bounds."""

import math
from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._reports.tables import Runs, Values, errorbars, finish, joined, pick, seeds

SIZES = (1, 2, 3, 4, 5)
BASE = "mixture/S=1"
ENSEMBLE, MIXTURE = "ensemble/S={}", "mixture/S={}"
PAPER_SVM = {
    "VAE (scVI)": {1: "94.7", 5: "96.1"},
    "Ensemble VAE": {5: "96.8"},
    "Mixture VAE": {5: "97.1"},
}
PAPER_ARI = {
    "VAE (scVI)": dict(zip(SIZES, ("0.82", "0.82", "0.82", "0.81", "0.82"), strict=True)),
    "Ensemble VAE": dict(zip(SIZES, ("0.82", "0.83", "0.83", "0.82", "0.83"), strict=True)),
    "Mixture VAE": dict(zip(SIZES, ("0.82", "0.82", "0.84", "0.85", "0.85"), strict=True)),
}
PAPER_NMI = {
    "VAE (scVI)": dict.fromkeys(SIZES, "0.81"),
    "Ensemble VAE": dict(zip(SIZES, ("0.82", "0.82", "0.82", "0.81", "0.81"), strict=True)),
    "Mixture VAE": dict(zip(SIZES, ("0.82", "0.82", "0.83", "0.84", "0.84"), strict=True)),
}


def table_rows(runs: Runs, name: str) -> dict[str, dict[int, Values]]:
    """Rows of Tables 6, 9 and 10: label to S to values by seed."""
    baseline = {size: pick(runs, BASE, "scores", f"draws/S={size}", name) for size in SIZES}
    single = pick(runs, BASE, "scores", "params", name)

    def several(job: str) -> dict[int, Values]:
        later = {size: pick(runs, job.format(size), "scores", "params", name) for size in SIZES[1:]}
        return {1: single} | later

    return {
        "VAE (scVI)": baseline,
        "Ensemble VAE": several(ENSEMBLE),
        "Mixture VAE": several(MIXTURE),
        "scvi-tools' SCVI": {1: pick(runs, "stock", "scores", "params", name)},
    }


def paper_table(runs: Runs, name: str, paper: dict, digits: int, scale: float = 1.0) -> str:
    """Our rows, each above the paper's."""
    rows = []
    for label, by_size in table_rows(runs, name).items():
        cells = [
            cell(list(by_size[size].values()), digits, scale) if size in by_size else ""
            for size in SIZES
        ]
        rows.append([label, *cells])
        if label in paper:
            rows.append([f"*{label}, paper*", *(paper[label].get(s, "illegible") for s in SIZES)])
    return markdown(["", *(f"S = {size}" for size in SIZES)], rows)


def equal_count_table(runs: Runs, name: str, digits: int, scale: float = 1.0) -> str:
    """The same score from as many features for every S, and the difference to S = 1."""
    rows = []
    for representation in ("mean", "moments", "pca"):
        path = ("scores", representation, name)
        base = pick(runs, BASE, *path)
        for label, job in (("ensemble", ENSEMBLE), ("mixture", MIXTURE)):
            row = [f"{representation}, {label}", cell(list(base.values()), digits, scale)]
            for size in SIZES[1:]:
                differences = paired(pick(runs, job.format(size), *path), base)
                row.append(cell(differences, digits, scale, sign=True))
            rows.append(row)
    return markdown(["", "S = 1", *(f"S = {s}, minus S = 1" for s in SIZES[1:])], rows)


def bounds_table(runs: Runs) -> str:
    """Held-out bounds in nats a cell, the gap and the diversity; the difference to S = 1."""
    jobs = {"stock": "scvi-tools' SCVI", BASE: "scVI (S = 1)"}
    jobs |= {ENSEMBLE.format(s): f"ensemble, S = {s}" for s in SIZES[1:]}
    jobs |= {MIXTURE.format(s): f"mixture, S = {s}" for s in SIZES[1:]}
    base = pick(runs, BASE, "log_likelihood")
    rows = []
    for job, label in jobs.items():
        columns = [
            list(pick(runs, job, name).values())
            for name in ("log_likelihood", "log_likelihood_eq17", "miselbo", "gap", "jsd")
        ]
        difference = paired(pick(runs, job, "log_likelihood"), base)
        against = "" if job == BASE else cell(difference, 2, sign=True)
        rows.append([label, *(cell(c, 2) for c in columns[:3]), against])
        rows[-1] += [cell(c, 2) for c in columns[3:]]
    header = ["", "log-likelihood, pooled", "log-likelihood, Eq. 17", "MISELBO"]
    return markdown([*header, "pooled, minus S = 1", "gap", "JSD"], rows)


def difference_table(runs: Runs) -> str:
    """Paired differences of the paper's scores; S = 1 is that model's own parameters."""
    scores = (
        ("svm", "SVM, per cent", 100.0, 2),
        ("svm_train_to_test", "SVM, train to test, per cent", 100.0, 2),
        ("ari", "ARI", 1.0, 3),
        ("nmi", "NMI", 1.0, 3),
    )
    rows = []
    for name, label, scale, digits in scores:
        found = table_rows(runs, name)
        single = dict.fromkeys(SIZES, found["Mixture VAE"][1])
        others = {
            "mixture minus VAE (scVI)": ("Mixture VAE", found["VAE (scVI)"]),
            "mixture minus ensemble": ("Mixture VAE", found["Ensemble VAE"]),
            "mixture minus S = 1": ("Mixture VAE", single),
            "ensemble minus S = 1": ("Ensemble VAE", single),
        }
        for comparison, (ours, other) in others.items():
            row = [f"{label}: {comparison}"]
            for size in SIZES[1:]:
                differences = paired(found[ours][size], other[size])
                row.append(cell(differences, digits, scale, sign=True))
            rows.append(row)
    return markdown(["", *(f"S = {size}" for size in SIZES[1:])], rows)


def cortex_tables(runs: Runs) -> str:
    """All tables of the CORTEX experiment."""
    parts = [
        f"{seeds(runs)} Mean ± half the 95 % t-interval over seeds; each seed has its own split "
        "and initialisation. Differences are paired by seed.",
        "**SVM accuracy in per cent (Table 6).** Of the paper's table only the cells shown can be "
        "read in the text at hand.",
        paper_table(runs, "svm", PAPER_SVM, 2, 100),
        "**SVM accuracy in per cent, fitted on the 2400 training cells, scored on all 405 test "
        "cells.**",
        paper_table(runs, "svm_train_to_test", {}, 2, 100),
        "**ARI of k-means (Table 9).**",
        paper_table(runs, "ari", PAPER_ARI, 3),
        "**NMI of k-means (Table 10).**",
        paper_table(runs, "nmi", PAPER_NMI, 3),
        "**What the mixture adds**, by the paper's own protocol, whose features grow with S.",
        difference_table(runs),
        "**SVM accuracy in per cent at equal feature count**: `mean` has 10 columns, `moments` "
        "(mean and variance of the mixture) and `pca` (of all parameters) have 20, whatever S.",
        equal_count_table(runs, "svm", 2, 100),
        "**The same from training to test cells.**",
        equal_count_table(runs, "svm_train_to_test", 2, 100),
        "**ARI at equal feature count.**",
        equal_count_table(runs, "ari", 3),
        "**NMI at equal feature count.**",
        equal_count_table(runs, "nmi", 3),
        "**Held-out bounds, nats a cell**, 1000 draws a cell for every S. The gap is the pooled "
        "log-likelihood, itself a lower bound, minus MISELBO: a better posterior can win at least "
        "that much. The JSD is at most log S "
        f"({', '.join(f'{math.log(s):.2f}' for s in SIZES)}).",
        bounds_table(runs),
    ]
    return joined(parts)


def cortex_figure(runs: Runs, path: Path) -> None:
    """Log-likelihood and gap against S, and accuracy at equal feature count."""
    figures = {
        "log-likelihood minus that of S = 1 (nats a cell)": ("log_likelihood",),
        "gap (nats a cell)": ("gap",),
        "SVM accuracy from moments (20 features)": ("scores", "moments", "svm"),
    }
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for ax, (title, keys) in zip(axes, figures.items(), strict=True):
        base = pick(runs, BASE, *keys)
        relative = "minus" in title
        for label, job in (("ensemble", ENSEMBLE), ("mixture", MIXTURE)):
            found = {1: base} | {s: pick(runs, job.format(s), *keys) for s in SIZES[1:]}
            if relative:
                found = {s: dict(enumerate(paired(values, base))) for s, values in found.items()}
            errorbars(ax, found, label)
        ax.set(title=title, xlabel="S", xticks=SIZES)
        ax.title.set_fontsize(9)
    finish(fig, axes, path)

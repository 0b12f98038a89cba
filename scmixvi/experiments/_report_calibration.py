"""Uncertainty of latents against a truth that is known: simulated cells, and cell types."""

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._coverage import LEVEL
from scmixvi.experiments._report_decoders import DATASETS
from scmixvi.experiments._tables import Runs, errorbars, finish, joined, pick, seeds
from scmixvi.experiments.calibration import STAGES
from scmixvi.experiments.decoders import COMPONENTS

TRUTHS = ("z", "expression")
DEPTHS = ("depth known", "depth summed")
SCORES = {"log_score": ("log score", 3, 1), "brier": ("Brier score", 3, 1)}
SHARES = {"right": "right", "sure_and_wrong": "sure and wrong"}
BASELINE = f"mean/{STAGES[0]}"
PREDICTIONS = [f"{what}/{stage}" for stage, what in product(STAGES, ("mean", "draws"))]


def calibration_tables(runs: Runs) -> str:
    """What intervals hold, and how good the probabilities of cell types are."""
    parts = [
        f"{seeds(runs)} Mean ± half the 95 % t-interval over seeds.",
        "**Cells that the model draws**: how many of the central intervals that should hold 90 % "
        "hold the truth, per cent; of each latent, and of each gene's expression. Once the depth "
        "that they were drawn with is known, and once it is taken to be the sum of their counts.",
        intervals_table(runs),
        "**Cell types of held-out cells**: the logarithmic score (nats) and Brier's score of the "
        "classifier's probabilities at the encoders' mean, and what other means and averages over "
        "draws add. A higher logarithmic score is better, a lower Brier score.",
        *(scores_table(runs, key) for key in SCORES),
        "How often the likeliest type is the right one, and how often a wrong one has a "
        "probability above 0.9, per cent.",
        shares_table(runs),
    ]
    return joined(parts)


def intervals_table(runs: Runs) -> str:
    """Per cent of the intervals that hold the truth."""
    table = []
    for depth, name, size in product(DEPTHS, DATASETS, COMPONENTS):
        row: list[object] = [depth, name, size]
        for what, stage in product(TRUTHS, STAGES):
            found = pick(runs, f"{name}/simulated/S={size}", depth, f"{what}/{stage}")
            row.append(cell(list(found.values()), 1, 100))
        table.append(row)
    header = [f"{what}, {stage}" for what, stage in product(TRUTHS, STAGES)]
    return markdown(["", "", "S", *header], table)


def scores_table(runs: Runs, key: str) -> str:
    """A score at the encoders' mean, and what is added to it."""
    label, digits, scale = SCORES[key]
    table = []
    for name, size in product(DATASETS, COMPONENTS):
        job = f"{name}/types/S={size}"
        before = pick(runs, job, f"{key}/{BASELINE}")
        row: list[object] = [name, size, cell(list(before.values()), digits, scale)]
        for prediction in PREDICTIONS[1:]:
            after = pick(runs, job, f"{key}/{prediction}")
            row.append(cell(paired(after, before), digits, scale, sign=True))
        table.append(row)
    header = [f"{label}, encoders' mean", *(p.replace("/", " of ") for p in PREDICTIONS[1:])]
    return markdown(["", "S", *header], table)


def shares_table(runs: Runs) -> str:
    """Accuracy, and sure errors, at the encoders' mean and averaged over draws."""
    table = []
    shown = [BASELINE, *(f"draws/{stage}" for stage in STAGES)]
    for name, size in product(DATASETS, COMPONENTS):
        row: list[object] = [name, size]
        for key, prediction in product(SHARES, shown):
            found = pick(runs, f"{name}/types/S={size}", f"{key}/{prediction}")
            row.append(cell(list(found.values()), 1, 100))
        table.append(row)
    names = ["encoders' mean", *(f"draws of {stage}" for stage in STAGES)]
    header = [f"{label}, {name}" for label, name in product(SHARES.values(), names)]
    return markdown(["", "S", *header], table)


def calibration_figure(runs: Runs, path: Path) -> None:
    """What intervals of simulated cells hold of z, for every posterior."""
    fig, axes = plt.subplots(1, len(DEPTHS), figsize=(9, 3.2), sharey=True)
    places = list(product(DATASETS, COMPONENTS))
    for ax, depth in zip(axes, DEPTHS, strict=True):
        for shift, stage in enumerate(STAGES):
            found = {}
            for place, (name, size) in enumerate(places):
                values = pick(runs, f"{name}/simulated/S={size}", depth, f"z/{stage}")
                found[place + 0.2 * (shift - 1)] = {s: 100 * v for s, v in values.items()}
            errorbars(ax, found, stage, linestyle="none")
        ax.axhline(100 * LEVEL, color="0.7", linewidth=0.8)
        ax.set(title=depth, xticks=range(len(places)))
        labels = [f"{name}, S = {size}" for name, size in places]
        ax.set_xticklabels(labels, rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel("intervals of z that hold the truth (%)")
    finish(fig, axes, path)

"""Uncertainty of latents against a truth that is known: simulated cells, and cell types."""

from collections.abc import Mapping
from functools import partial
from itertools import product
from pathlib import Path

from scmixvi.experiments._cells.coverage import LEVEL
from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._reports.decoders import DATASETS
from scmixvi.experiments._reports.tables import Runs, Values, joined, pick, seeds, settings_figure
from scmixvi.experiments.calibration import DEPTHS, STAGES
from scmixvi.experiments.decoders import COMPONENTS

TRUTHS = ("z", "expression")
SCORES = {"log_score": "log score", "brier": "Brier score"}
SHARES = {"right": "right", "sure_and_wrong": "sure and wrong"}
SIMULATED = {depth: ("simulated", depth) for depth in DEPTHS}
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


def intervals_table(runs: Runs, depths: Mapping[str, tuple[str, ...]] = SIMULATED) -> str:
    """Per cent of the intervals that hold the truth.

    `depths` leads from what is known of the depth to where a run has its figures: the kind of job,
    and then keys.
    """
    table = []
    for depth, name, size in product(depths, DATASETS, COMPONENTS):
        row: list[object] = [depth, name, size]
        for what, stage in product(TRUTHS, STAGES):
            found = held(runs, name, size, depths[depth], f"{what}/{stage}")
            row.append(cell(list(found.values()), 1))
        table.append(row)
    header = [f"{what}, {stage}" for what, stage in product(TRUTHS, STAGES)]
    return markdown(["", "", "S", *header], table)


def held(runs: Runs, name: str, size: int, where: tuple[str, ...], key: str) -> Values:
    """Per cent of the intervals of every seed that hold the truth."""
    kind, *keys = where
    found = pick(runs, f"{name}/{kind}/S={size}", *keys, key)
    return {seed: 100 * value for seed, value in found.items()}


def scores_table(runs: Runs, key: str) -> str:
    """A score at the encoders' mean, and what is added to it."""
    table = []
    for name, size in product(DATASETS, COMPONENTS):
        job = f"{name}/types/S={size}"
        before = pick(runs, job, f"{key}/{BASELINE}")
        row: list[object] = [name, size, cell(list(before.values()), 3)]
        for prediction in PREDICTIONS[1:]:
            after = pick(runs, job, f"{key}/{prediction}")
            row.append(cell(paired(after, before), 3, sign=True))
        table.append(row)
    header = [f"{SCORES[key]}, encoders' mean", *(p.replace("/", " of ") for p in PREDICTIONS[1:])]
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


def calibration_figure(
    runs: Runs, path: Path, depths: Mapping[str, tuple[str, ...]] = SIMULATED
) -> None:
    """What intervals of simulated cells hold of z, for every posterior."""

    def values_of(where: tuple[str, ...], stage: str, name: str, size: int) -> Values:
        return held(runs, name, size, where, f"z/{stage}")

    panels = {depth: partial(values_of, where) for depth, where in depths.items()}
    settings = list(product(DATASETS, COMPONENTS))
    label = "intervals of z that hold the truth (%)"
    settings_figure(path, panels, STAGES, settings, 100 * LEVEL, label)

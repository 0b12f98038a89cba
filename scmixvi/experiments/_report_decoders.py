"""Decoders and posteriors apart: log p(x) by adapted proposals, and the whole variational gap."""

from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments import decoders
from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._tables import Runs, errorbars, finish, joined, pick, seeds
from scmixvi.singlecell._evidence import N_FINAL

DATASETS = ("cortex", "sc_mixology", "pbmc68k")
TRUST = ("effective_share", "still_rising")
SINGLE, DEFAULT = "mixture/S=1", "default/S=1"


def rows_of(data: str) -> dict[str, tuple[str, str]]:
    """Label to job and the job that it is compared with."""
    found = {"S = 1": (SINGLE, SINGLE), "mixture, S = 4": ("mixture/S=4", SINGLE)}
    if data == "cortex":
        found["ensemble, S = 4"] = ("ensemble/S=4", SINGLE)
    if data in decoders.WITH_DEFAULTS:
        found["defaults, S = 1"] = (DEFAULT, DEFAULT)
        found["defaults, S = 4"] = ("default/S=4", DEFAULT)
    return {label: (f"{data}/{job}", f"{data}/{base}") for label, (job, base) in found.items()}


def decoders_tables(runs: Runs) -> str:
    """Levels and paired differences, and how far the estimates are to be trusted."""
    differences, trust = [], []
    for data in DATASETS:
        for label, (job, base) in rows_of(data).items():
            row = [data, label, cell(list(pick(runs, job, "test", "log_p").values()))]
            for path in (("test", "log_p"), ("test", "gap"), ("training", "gap")):
                values = pick(runs, job, *path)
                if path[1] == "gap":
                    row.append(cell(list(values.values())))
                found = paired(values, pick(runs, base, *path))
                row.append("" if job == base else cell(found, sign=True))
            differences.append(row)
            short = paired(pick(runs, job, "test", "log_p"), pick(runs, job, "test", "own_draws"))
            rows = [list(pick(runs, job, "test", key).values()) for key in TRUST]
            trust.append([data, label, cell(short), cell(rows[0]), cell(rows[1], 3)])
    parts = [
        f"{seeds(runs)} Nats a cell, mean ± half the 95 % t-interval over seeds; differences are "
        "paired by seed. log p(x) of test cells is that of the decoder, by proposals adapted to "
        "each cell; the gap is log p(x) minus MISELBO, of test cells and of cells that the model "
        "was trained on. An ensemble has the decoder of S = 1, so that its difference in log p(x) "
        "shows the error of the estimate.",
        markdown(
            ["", "", "log p(x)", "minus S = 1", "gap", "minus S = 1"]
            + ["gap, training cells", "minus S = 1"],
            differences,
        ),
        "**How far to trust it.** What 1000 draws of a model's own encoders, pooled, fall short of "
        f"log p(x); of the adapted proposals, the effective share of {N_FINAL} draws, and what ten "
        "times as many draws still add.",
        markdown(["", "", "own draws fall short by", "effective share", "still rising"], trust),
    ]
    return joined(parts)


def decoders_figure(runs: Runs, path: Path) -> None:
    """What each model adds to one encoder's log p(x) and to its gap, test cells."""
    fig, axes = plt.subplots(1, len(DATASETS), figsize=(11, 3.2), sharey=True)
    for ax, data in zip(axes, DATASETS, strict=True):
        compared = {k: names for k, names in rows_of(data).items() if names[0] != names[1]}
        labels, rows = list(compared), list(compared.values())
        for shift, (key, title) in enumerate({"log_p": "log p(x)", "gap": "gap"}.items()):
            found = {}
            for i, (job, base) in enumerate(rows):
                gains = paired(*(pick(runs, name, "test", key) for name in (job, base)))
                found[i + 0.2 * shift - 0.1] = dict(enumerate(gains))
            errorbars(ax, found, title, linestyle="none")
        ax.axhline(0, color="0.7", linewidth=0.8)
        ax.set(title=data, xticks=range(len(labels)), xlim=(-0.5, len(labels) - 0.5))
        ax.set_xticklabels(labels, rotation=20, ha="right", fontsize=8)
    axes[0].set_ylabel("minus S = 1 (nats a cell)")
    finish(fig, axes, path)

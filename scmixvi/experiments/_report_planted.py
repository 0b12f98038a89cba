"""Tables of the experiment with planted changes."""

from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments._common import cell, markdown
from scmixvi.experiments._report_integration import DATA_SETS
from scmixvi.experiments._tables import Runs, errorbars, finish, joined, pick, seeds

COMPARED = {
    "scvi/uniform": "SCVI",
    "scvi/refined": "SCVI, refined",
    "mixture/uniform": "MixtureSCVI",
    "mixture/importance_by_cell": "by cell",
    "mixture/refined": "refined",
    "mixture/refined_by_cell": "refined, by cell",
    "mixture/importance": "importance",
}
LEVELS = ("0.05", "0.2")


def planted_tables(runs: Runs) -> str:
    """Recall and false calls at two levels, AUROC and fold change."""
    paths = [(level, figure) for level in LEVELS for figure in ("recall", "false")]
    rows = []
    for data in DATA_SETS:
        for job, label in COMPARED.items():
            row = [data, label]
            for path in (*paths, ("auroc",), ("fold_change",)):
                values = list(pick(runs, f"{data}/{job}", *path).values())
                share = len(path) == 2
                row.append(cell(values, 1 if share else 3, 100 if share else 1))
            rows.append([*row, len(values)])
    columns = [
        f"{what} at FDR {level}, %" for level in LEVELS for what in ("planted called", "false")
    ]
    parts = [
        f"{seeds(runs)} Mean ± half the 95 % t-interval over seeds. The planted log2 fold change "
        "is 1; *by cell* and *importance* are MixtureSCVI with these weights, *refined* with "
        "posteriors of the cells' own after 100 gradient steps.",
        markdown(["", "", *columns, "AUROC", "log2 fold change", "seeds"], rows),
    ]
    return joined(parts)


def planted_figure(runs: Runs, path: Path) -> None:
    """What is called of the planted genes, and what of the called is false, at 5 %."""
    fig, axes = plt.subplots(1, len(DATA_SETS), figsize=(3.4 * len(DATA_SETS), 3), sharey=True)
    for ax, data in zip(axes, DATA_SETS, strict=True):
        for figure, label in (("recall", "planted genes called"), ("false", "false among called")):
            found = {
                place: pick(runs, f"{data}/{job}", LEVELS[0], figure)
                for place, job in enumerate(COMPARED)
            }
            errorbars(ax, found, label, linestyle="none")
        ax.set(title=data, xticks=range(len(COMPARED)), xlim=(-0.5, len(COMPARED) - 0.5))
        ax.set_xticklabels(COMPARED.values(), rotation=20, ha="right", fontsize=8)
    axes[0].set_ylabel("share, at a false discovery rate of 5 %")
    finish(fig, list(axes), path)

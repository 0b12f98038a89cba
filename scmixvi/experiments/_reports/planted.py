"""Tables of the experiment with planted changes."""

from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments._common import cell, markdown
from scmixvi.experiments._reports.integration import DATA_SETS
from scmixvi.experiments._reports.tables import Runs, errorbars, finish, joined, pick, seeds

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
    """Estimated fold changes, and at a rate of 20 % what is called and what of it is false."""
    shape = {"figsize": (3.4 * len(DATA_SETS), 5.4), "sharey": "row", "sharex": True}
    fig, axes = plt.subplots(2, len(DATA_SETS), **shape)
    rows = (
        {("fold_change",): "log2 fold change"},
        {(LEVELS[1], "recall"): "planted genes called", (LEVELS[1], "false"): "false among called"},
    )
    for row, lines in zip(axes, rows, strict=True):
        for ax, data in zip(row, DATA_SETS, strict=True):
            for figure, label in lines.items():
                found = {
                    place: pick(runs, f"{data}/{job}", *figure)
                    for place, job in enumerate(COMPARED)
                }
                errorbars(ax, found, label, linestyle="none")
            ax.set(xticks=range(len(COMPARED)), xlim=(-0.5, len(COMPARED) - 0.5), ylim=(-0.05, 1.1))
            ax.set_xticklabels(COMPARED.values(), rotation=45, ha="right", fontsize=8)
    for ax, data in zip(axes[0], DATA_SETS, strict=True):
        ax.set_title(data)
        ax.axhline(1, color="0.7", linewidth=0.8)
    for ax in axes[1]:
        ax.axhline(float(LEVELS[1]), color="0.7", linewidth=0.8)
    axes[0, 0].set_ylabel("log2 fold change (1 in truth)")
    axes[1, 0].set_ylabel("share, at a rate of 20 %")
    finish(fig, [*axes[1], *axes[0]], path)  # the legend in the first of these

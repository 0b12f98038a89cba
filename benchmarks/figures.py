"""Figures of the documentation from the JSON of the benchmarks.

python -m benchmarks.figures        writes docs/_static/gains.png
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks._report_bounds import DATASETS, gains_of

STATIC = Path(__file__).parents[1] / "docs" / "_static"
SETTINGS = {"none": "without batch norm", "both": "with batch norm (the default)"}

X_LABEL = (
    "estimate of log p(x) from 200 of the model's own draws,\n"
    "S = 4 minus S = 1, nats a held-out cell"
)


def gains_figure() -> Figure:
    """What four components add to the estimate of log p(x) of held-out cells, a dot a seed."""
    fig, axes = plt.subplots(
        1, len(SETTINGS), figsize=(7, 2.2), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (batch_norm, title) in zip(axes, SETTINGS.items(), strict=True):
        for row, data in enumerate(DATASETS):
            values = gains_of(data, batch_norm, "log_likelihood")
            ax.plot(values, [row] * len(values), "o", alpha=0.7, clip_on=False)
        ax.axvline(0, color="grey", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(DATASETS)), DATASETS)
    axes[0].set_ylim(len(DATASETS) - 0.5, -0.5)
    fig.supxlabel(X_LABEL, fontsize=9)
    return fig


if __name__ == "__main__":
    gains_figure().savefig(STATIC / "gains.png", dpi=120)

"""Figures of the documentation from the JSON of the benchmarks.

python -m benchmarks.figures        writes docs/_static/gains.png
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.report import DATASETS, gains_of

STATIC = Path(__file__).parents[1] / "docs" / "_static"
SETTINGS = {"none": "without batch norm", "both": "with batch norm (the default)"}


def gains_figure() -> Figure:
    """Gain of four components over one in held-out log p(x), a dot for each seed."""
    fig, axes = plt.subplots(1, len(SETTINGS), figsize=(7, 2), sharex=True, sharey=True)
    for ax, (batch_norm, title) in zip(axes, SETTINGS.items(), strict=True):
        for row, data in enumerate(DATASETS):
            values = gains_of(data, batch_norm, "log_likelihood")
            ax.plot(values, [row] * len(values), "o", alpha=0.7, clip_on=False)
        ax.axvline(0, color="grey", linewidth=1)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("log p(x), S = 4 minus S = 1, nats a cell")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(DATASETS)), DATASETS)
    axes[0].set_ylim(len(DATASETS) - 0.5, -0.5)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    gains_figure().savefig(STATIC / "gains.png", dpi=120)

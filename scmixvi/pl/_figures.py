"""What all plots share: panels, and scanpy's manners at the end."""

from pathlib import Path

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.axes import Axes


def panels(n_panels: int, width: float = 5.5, height: float = 4.2) -> list[Axes]:
    """Axes side by side in a new figure; sizes in inches a panel."""
    size = (width * n_panels, height)
    _, axes = plt.subplots(1, n_panels, figsize=size, squeeze=False, layout="constrained")
    return list(axes[0])


def finished(axes: Axes, show: bool | None, save: str | Path | None) -> bool:
    """Save and show the figure as asked; return whether it was shown."""
    if save is not None:
        axes.figure.savefig(save, bbox_inches="tight", dpi=110)
    if sc.settings.autoshow if show is None else show:
        plt.show()
        return True
    return False

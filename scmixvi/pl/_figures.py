"""What all plots share: panels, and scanpy's manners at the end."""

from pathlib import Path

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure


def panels(n_panels: int, width: float = 5.5, height: float = 4.2) -> list[Axes]:
    """Axes side by side in a new figure; sizes in inches a panel."""
    size = (width * n_panels, height)
    _, axes = plt.subplots(1, n_panels, figsize=size, squeeze=False, layout="constrained")
    return list(axes[0])


def check_figure(ax: Axes | None, save: str | Path | None) -> None:
    """Raise TypeError for what is no place to draw into or to write to."""
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"ax must be one matplotlib Axes, but it is a {type(ax).__name__}.")
    if save is not None and not isinstance(save, str | Path):
        raise TypeError(
            f"save must be the name of a file, such as 'cells.png', but it is {save!r}."
        )


def finished(axes: Axes, show: bool | None, save: str | Path | None) -> bool:
    """Save and show the figure as asked; return whether it was shown."""
    if save is not None:
        figure = axes.figure
        while isinstance(figure, SubFigure):
            figure = figure.figure
        figure.savefig(save, bbox_inches="tight", dpi=110)
    if sc.settings.autoshow if show is None else show:
        plt.show()
        return True
    return False

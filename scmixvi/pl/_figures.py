"""What all plots share: panels, and scanpy's manners at the end."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure


def panels(n_panels: int, width: float = 5.5, height: float = 4.2) -> list[Axes]:
    """Axes side by side in a new figure; sizes in inches a panel."""
    size = (width * n_panels, height)
    _, axes = plt.subplots(1, n_panels, figsize=size, squeeze=False, layout="constrained")
    return list(axes[0])


def colours_of(adata: Any, gene_symbols: str | None = None) -> set[str]:
    """Names that cells may be coloured by: columns of obs, and genes where they are in memory."""
    known = {*adata.obs}
    for genes in (adata, getattr(adata, "raw", None)):
        if hasattr(genes, "var"):
            known |= {*genes.var_names, *genes.var.get(gene_symbols, ())}
    return known


def check_figure(ax: Axes | None, save: str | Path | None) -> None:
    """Raise TypeError for what is no place to draw into or to write to.

    ValueError for a folder in the place of a file, or one that is not there.
    """
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"ax must be one matplotlib Axes, but it is a {type(ax).__name__}.")
    if save is not None and not isinstance(save, str | Path):
        raise TypeError(
            f"save must be the name of a file, such as 'cells.png', but it is {save!r}."
        )
    if save is not None and (not str(save) or Path(save).is_dir()):
        raise ValueError(f"save must be the name of a file, but {str(save)!r} is a folder.")
    if save is not None and not Path(save).parent.is_dir():
        raise ValueError(f"the folder {Path(save).parent}, to save in, does not exist: make it.")


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

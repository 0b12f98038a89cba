"""Where each component of the posterior puts a cell."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from sklearn.decomposition import PCA

from scmixvi._messages import listing
from scmixvi.pl._figures import check_figure, colours_of, finished, panels

MARKS = (
    "dot: mean of a component; ellipse: its standard deviation\n"
    "lines meet at the mean of the cell's mixture"
)
"""What a star is made of: the title of the legend."""


def components(
    model: Any,
    cells: Sequence[str] | Sequence[int] | np.ndarray,
    color: str | None = None,
    *,
    adata: AnnData | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    **kwargs: Any,
) -> Axes | None:
    r"""Posterior of chosen cells, component by component, over all cells.

    Every chosen cell is a star: a dot at the mean of each of its S components, its area in
    proportion to the component's weight, with the component's ellipse of one standard deviation,
    and a line to the mean of the mixture. A legend below the axes says which star is which cell, as
    long as there are as many colours as cells: 10, or 8 beside `color`.

    The plane is the first two principal components of the mixture means of all cells. A linear
    projection :math:`W` maps a Gaussian exactly, :math:`N(\mu, \Sigma)` to
    :math:`N(W^T \mu, W^T \Sigma W)`, so what is drawn is the posterior's true marginal in that
    plane. A UMAP has no place for a component: it is not a function of the latents. Components
    that look alike here may still differ in the other directions; the axes say what share of the
    variance is shown.

    Parameters
    ----------
    model
        A :class:`scmixvi.MixtureSCVI`.
    cells
        Which cells to draw: names, positions, or a Boolean mask over all cells.
    color
        Key of `obs`, or a gene, that colours the other cells; None is grey.
    adata
        Cells to draw and to choose from; None takes the model's own.
    ax
        Axes to draw into.
    show
        Show the figure and return nothing; None follows `scanpy.settings.autoshow`.
    save
        File to write the figure to; its ending chooses the format.
    **kwargs
        Arguments of :func:`scanpy.pl.embedding` for the cells in the background. `legend_loc=None`
        leaves out the legend of the stars too.

    Returns
    -------
    The axes; None if `show`.

    Raises
    ------
    TypeError
        If the model has no components, `ax` is no matplotlib Axes or `save` no name of a file.
    KeyError
        If a cell or `color` is not in adata.
    ValueError
        If no cell is chosen, `cells` is no list, a mask has the wrong length, cells are chosen by
        names that several have, the model has one latent dimension, or `save` names a folder, or a
        file in one that is not there.
    IndexError
        If a position is out of range.

    Examples
    --------
    >>> most = np.argsort(adata.obs["posterior_diversity"])[-5:]
    >>> scmixvi.pl.components(model, most, color="cell_type")
    """
    if not hasattr(model, "get_component_weights"):
        raise TypeError(
            f"the model must be a MixtureSCVI, but it is a {type(model).__name__}: see "
            "MixtureSCVI.from_scvi_model."
        )
    adata = model.adata if adata is None else adata
    chosen = _positions(cells, adata)
    check_figure(ax, save)
    color = color[0] if isinstance(color, list) and len(color) == 1 else color
    shown = _shown(adata, color, kwargs)
    weights = model.get_component_weights(adata)
    params = model.get_latent_representation(adata, representation="params")
    means, variances = params.reshape(len(params), 2, weights.shape[1], -1).transpose(1, 0, 2, 3)
    mixture = (weights[..., None] * means).sum(1)
    if mixture.shape[1] < 2:
        raise ValueError(
            "the plane needs at least two latent dimensions, but the model has n_latent=1: "
            "train one with more."
        )
    plane = PCA(2, random_state=0).fit(mixture)
    ax = panels(1)[0] if ax is None else ax
    _draw_background(adata, shown, plane.transform(mixture), color, ax, kwargs)
    colours = plt.colormaps["tab10" if color is None else "Dark2"].colors
    for i, cell in enumerate(chosen):
        _draw_cell(
            plane, means[cell], variances[cell], weights[cell], colours[i % len(colours)], ax
        )
    if len(chosen) <= len(colours) and kwargs.get("legend_loc", "") not in (None, "none"):
        _draw_legend(adata.obs_names[chosen], colours, ax)
    ax.grid(False)
    for axis, share in zip((ax.xaxis, ax.yaxis), plane.explained_variance_ratio_, strict=True):
        axis.set_label_text(f"{axis.get_label_text()} ({share:.0%})")
    return None if finished(ax, show, save) else ax


def _positions(cells: Any, adata: AnnData) -> np.ndarray:
    if hasattr(cells, "obs_names"):
        raise ValueError(
            "cells must be names, positions or a mask, but it is an AnnData: pass that as adata, "
            "and its .obs_names as cells."
        )
    wanted = np.atleast_1d(np.asarray(cells))
    if wanted.ndim != 1:
        raise ValueError(
            "cells must be one list of names or positions, or a mask, but it is a table of shape "
            f"{wanted.shape}: of a DataFrame pass its .index."
        )
    if wanted.dtype == bool:
        if len(wanted) != adata.n_obs:
            raise ValueError(
                f"a mask of cells must have one entry for each of the {adata.n_obs} cells, "
                f"but it has {len(wanted)}."
            )
        wanted = np.flatnonzero(wanted)
    if wanted.size == 0:
        raise ValueError("cells chooses no cell: name at least one.")
    if np.issubdtype(wanted.dtype, np.integer):
        if wanted.min() < -adata.n_obs or wanted.max() >= adata.n_obs:
            raise IndexError(
                f"positions of cells must be below {adata.n_obs}, but they are {listing(wanted)}."
            )
        return wanted
    if not adata.obs_names.is_unique:
        raise ValueError(
            "several cells have the same name: choose them by position, or call "
            "adata.obs_names_make_unique() first."
        )
    if wanted.dtype.kind not in "OUST":
        raise ValueError(
            "cells must be names, positions (whole numbers) or a mask: of a Series of values pass "
            "its .index."
        )
    found = adata.obs_names.get_indexer(wanted.astype(str))
    if (found < 0).any():
        raise KeyError(
            f"adata has no cell {listing(wanted[found < 0])}: its cells are "
            f"{listing(adata.obs_names, 4)}."
        )
    return found


def _shown(adata: AnnData, color: str | None, kwargs: dict[str, Any]) -> pd.DataFrame:
    """What the cells are coloured by: a column of obs, or a gene, found as scanpy does.

    The arguments that say where are taken out of `kwargs`, and a column that masks cells is put in.
    """
    where = {name: kwargs.pop(name, None) for name in ("layer", "use_raw", "gene_symbols")}
    if isinstance(kwargs.get("mask_obs"), str):
        kwargs["mask_obs"] = adata.obs[kwargs["mask_obs"]].to_numpy()
    if color is None:
        return pd.DataFrame(index=adata.obs_names)
    if not isinstance(color, str) or color not in colours_of(adata, where["gene_symbols"]):
        raise KeyError(
            f"color must be one column of adata.obs (it has {listing(adata.obs)}) or one gene, but "
            f"it is {color!r}."
        )
    if color in adata.obs:
        return adata.obs[[color]]
    if where["use_raw"] is None:
        where["use_raw"] = adata.raw is not None and where["layer"] is None
    return sc.get.obs_df(adata, [color], **where)


def _draw_background(
    adata: AnnData,
    shown: pd.DataFrame,
    points: np.ndarray,
    color: str | None,
    ax: Axes,
    kwargs: dict,
) -> None:
    """All cells, faintly, by scanpy; colours that adata keeps for `color` are used."""
    cells = AnnData(obs=shown, obsm={"X_latent PC": points})
    if color is not None and f"{color}_colors" in adata.uns:
        cells.uns[f"{color}_colors"] = adata.uns[f"{color}_colors"]
    style = {"alpha": 0.35, "title": color or "posterior components", "frameon": True} | kwargs
    sc.pl.embedding(cells, "latent PC", color=color, ax=ax, show=False, **style)


def _draw_cell(
    plane: PCA, means: np.ndarray, variances: np.ndarray, weights: np.ndarray, colour: Any, ax: Axes
) -> None:
    """One cell's star: `means` and `variances` `(S, D)`, `weights` `(S,)`."""
    dots, centre = plane.transform(means), plane.transform(weights[None] @ means)[0]
    for dot, variance, weight in zip(dots, variances, weights, strict=True):
        strength = min(1.0, weight * len(weights))  # a component of no weight fades
        ax.plot(*zip(centre, dot, strict=True), color=colour, alpha=strength, zorder=4)
        # The projected covariance's axes are where the ellipse's are.
        length, direction = np.linalg.eigh(plane.components_ * variance @ plane.components_.T)
        angle = np.degrees(np.arctan2(direction[1, 1], direction[0, 1]))
        width, height = 2 * np.sqrt(length[::-1])
        ellipse = Ellipse(dot, width, height, angle=angle, color=colour, zorder=3)
        ellipse.set_alpha(0.25 * strength)
        ax.add_patch(ellipse)
    area = 40 * weights * len(weights)
    ax.scatter(*dots.T, s=area, color=colour, edgecolor="black", linewidth=0.6, zorder=5)


def _draw_legend(names: Sequence[str], colours: Sequence[Any], ax: Axes) -> None:
    """Which star is which cell, below the axes: what scanpy adds stands to the right of them."""
    dots = [
        Line2D([], [], color=colour, marker="o", markeredgecolor="black", markeredgewidth=0.6)
        for _, colour in zip(names, colours, strict=False)
    ]
    legend = Legend(
        ax,
        dots,
        list(names),
        loc="upper left",
        bbox_to_anchor=(0, -0.08),
        ncols=2,
        title=MARKS,
        alignment="left",
        title_fontsize="small",
        fontsize="small",
        frameon=False,
    )
    ax.add_artist(legend)  # beside that of `color`, which ax.legend would replace
    legend.set_clip_on(False)  # so that layouts and files make room for it

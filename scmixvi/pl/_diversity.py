"""How much the components disagree, on an embedding of the cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes

from scmixvi._messages import listing
from scmixvi.pl._figures import check_figure, colours_of, finished, panels


def posterior_diversity(
    adata: AnnData,
    color: str | Sequence[str] | None = None,
    *,
    key: str = "posterior_diversity",
    basis: str = "umap",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    **kwargs: Any,
) -> Axes | list[Axes] | None:
    """Embedding of the cells coloured by how much the mixture's components disagree about each.

    Parameters
    ----------
    adata
        Cells with an embedding `obsm["X_" + basis]` and, in `obs[key]`, what
        :meth:`scmixvi.MixtureSCVI.get_posterior_diversity` returns: the Jensen-Shannon divergence
        of the components in nats, from 0 to log S.
    color
        Keys of `obs`, or genes, to show in panels to the left of the diversity; None for none.
    key
        Column of `obs` that holds the diversity.
    basis
        Name of the embedding.
    ax
        Axes to draw into; only without `color`.
    show
        Show the figure and return nothing; None follows `scanpy.settings.autoshow`.
    save
        File to write the figure to; its ending chooses the format.
    **kwargs
        Arguments of :func:`scanpy.pl.embedding` for every panel, such as `size` or `frameon`;
        `title`, `vmin`, `vmax`, `vcenter` and `norm` may be lists, one a panel.

    Returns
    -------
    One Axes, or a list with one for each panel where `color` is given; None if `show`.

    Raises
    ------
    KeyError
        If the diversity or the embedding is missing from adata.
    ValueError
        If both `ax` and `color` are given, a list has not one entry a panel, or `save` names a
        folder, or a file in one that is not there.
    TypeError
        If `adata` is no AnnData in memory, `ax` or `save` of another type, or an argument is about
        several panels, which stand in a row here.

    Examples
    --------
    >>> adata.obs["posterior_diversity"] = model.get_posterior_diversity()
    >>> scmixvi.pl.posterior_diversity(adata, color="cell_type")
    """
    names = [color] if isinstance(color, str) else [] if color is None else list(color)
    _check(adata, names, key, basis, kwargs.get("gene_symbols"))
    if ax is not None and names:
        raise ValueError("give either ax (one panel) or color (a panel for each key), not both.")
    check_figure(ax, save)
    given = _of_panels(kwargs, len(names) + 1)
    axes = [ax] if ax is not None else panels(len(names) + 1)
    for panel, name, arguments in zip(axes, names, given, strict=False):
        sc.pl.embedding(adata, basis, color=name, ax=panel, show=False, **arguments)
    style = _style(given[-1])
    sc.pl.embedding(adata, basis, color=key, ax=axes[-1], show=False, **style)
    if finished(axes[-1], show, save):
        return None
    return axes if names else axes[0]


ONE_A_PANEL = ("title", "vmin", "vmax", "vcenter", "norm")
"""Arguments that may be lists."""


def _of_panels(kwargs: dict[str, Any], n_panels: int) -> list[dict[str, Any]]:
    """The arguments of every panel: of a list its own entry."""
    foreign = [name for name in ("ncols", "wspace", "hspace", "return_fig") if name in kwargs]
    if foreign:
        raise TypeError(f"the panels stand in a row, so {listing(foreign)} cannot be given.")
    given = [dict(kwargs) for _ in range(n_panels)]
    for name in ONE_A_PANEL:
        values = kwargs.get(name)
        if not isinstance(values, Sequence) or isinstance(values, str):
            continue
        if len(values) != n_panels:
            raise ValueError(f"there are {n_panels} panels, but {name} has {len(values)}.")
        for arguments, value in zip(given, values, strict=True):
            arguments[name] = value
    return given


def _style(given: dict[str, Any]) -> dict[str, Any]:
    """How the diversity is drawn, where nothing else is given."""
    style = {"title": "posterior diversity (JSD, nats)"}
    if given.get("color_map") is None:
        style |= {"cmap": "viridis"}
    if given.get("norm") is None:
        style |= {"vmin": 0}
    return style | given


def _check(
    adata: AnnData, color: Sequence[str], key: str, basis: str, gene_symbols: str | None
) -> None:
    if not hasattr(adata, "obs"):
        raise TypeError(
            f"adata must be an AnnData, but it is a {type(adata).__name__}: of a model pass "
            "model.adata."
        )
    if not hasattr(adata, "var"):
        raise TypeError(
            "adata must be an AnnData in memory, but it is a collection of files: make one of what "
            "is to be seen, AnnData(obs=..., obsm={'X_umap': ...})."
        )
    known = colours_of(adata, gene_symbols)
    absent = [name for name in color if name not in known]
    if absent:
        raise KeyError(
            f"color {listing(map(repr, absent))} is neither a column of adata.obs (it has "
            f"{listing(adata.obs)}) nor a gene."
        )
    if key not in adata.obs:
        raise KeyError(
            f"adata.obs has no column {key!r} (it has {listing(adata.obs)}): store it first, "
            f"adata.obs[{key!r}] = model.get_posterior_diversity()."
        )
    if basis not in adata.obsm and f"X_{basis}" not in adata.obsm:
        raise KeyError(
            f"adata.obsm has no embedding 'X_{basis}' (it has {listing(adata.obsm)}): compute it, "
            f"for example with sc.pp.neighbors(adata, use_rep='X_mix') and sc.tl.{basis}(adata)."
        )

"""Scores of several models as a coloured table."""

from collections.abc import Collection
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scmixvi._messages import listing
from scmixvi.pl._figures import check_figure, finished, panels

LUMINANCE = (0.299, 0.587, 0.114)
"""How bright red, green and blue are, of 1 in all."""


def compare(
    scores: pd.DataFrame,
    *,
    lower_is_better: str | Collection[str] = (),
    digits: int = 2,
    cmap: str = "YlGn",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Table of scores: a row a model, a column a score, the better the darker.

    Rows of the same name are runs of one model, such as seeds: the table shows their mean and
    standard deviation. In every column the best mean is bold, and so is every other from which it
    does not differ as printed, or by less than the larger standard deviation of the two: such a
    difference may be chance. Colours run from the worst to the best of each column.

    Parameters
    ----------
    scores
        One row a model or run, one column a score; missing values are shown as a dash.
    lower_is_better
        Column, or columns, in which low values are good.
    digits
        After the decimal point.
    cmap
        Matplotlib's name of the colours, from bad to good.
    ax
        Axes to draw into.
    show
        Show the figure and return nothing; None follows `scanpy.settings.autoshow`.
    save
        File to write the figure to; its ending chooses the format.

    Returns
    -------
    The axes; None if `show`.

    Raises
    ------
    TypeError
        If `scores` is not a DataFrame of numbers, `ax` no matplotlib Axes, or `save` no name of a
        file.
    ValueError
        If it is empty, or has several columns of one name; if `save` names a folder, or a file in
        one that is not there.
    KeyError
        If `lower_is_better` names a column that is not there.

    Examples
    --------
    >>> scmixvi.pl.compare(pd.DataFrame({"ARI": [0.71, 0.72]}, index=["SCVI", "MixtureSCVI"]))
    """
    if isinstance(lower_is_better, str):
        lower_is_better = [lower_is_better]
    _check(scores, lower_is_better)
    check_figure(ax, save)
    scores = scores.astype(float)  # pandas' own missing values have no order
    runs = scores.groupby(level=0, sort=False, dropna=False, observed=True)
    means, spreads = runs.mean(), runs.std()
    signs = np.where(means.columns.isin(list(lower_is_better)), -1.0, 1.0)
    goodness = means * signs
    shade = (goodness - goodness.min()) / (goodness.max() - goodness.min())
    n_rows, n_columns = means.shape
    if ax is None:
        rows, columns = (max(map(len, map(str, names))) for names in (means.index, means.columns))
        width = 0.09 * rows + max(1.5, 0.08 * columns + 0.2) * n_columns
        ax = panels(1, width + 0.4, 0.45 * n_rows + 0.6)[0]
    colours = plt.colormaps[cmap].with_extremes(bad="white")
    image = ax.imshow(
        np.ma.masked_invalid(0.1 + 0.6 * shade), cmap=colours, vmin=0, vmax=1, aspect="auto"
    )
    is_light = image.to_rgba(image.get_array())[..., :3] @ LUMINANCE > 0.5
    is_best = _is_best(goodness, spreads, digits)
    for row, column in np.ndindex(n_rows, n_columns):
        text = _text(means.iat[row, column], spreads.iat[row, column], digits)
        weight = "bold" if is_best.iat[row, column] else "normal"
        colour = "black" if is_light[row, column] else "white"
        ax.text(column, row, text, ha="center", va="center", weight=weight, color=colour)
    arrows = np.where(signs > 0, "↑", "↓")
    ax.set_xticks(range(n_columns), [f"{c} {a}" for c, a in zip(means, arrows, strict=True)])
    ax.set_yticks(range(n_rows), means.index)
    ax.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return None if finished(ax, show, save) else ax


def _check(scores: pd.DataFrame, lower_is_better: Collection[str]) -> None:
    if not isinstance(scores, pd.DataFrame):
        raise TypeError(
            "scores must be a pandas DataFrame, a row a model, "
            f"but it is a {type(scores).__name__}."
        )
    if scores.empty:
        raise ValueError("scores is empty: give at least one row (model) and one column (score).")
    if not scores.columns.is_unique:
        twice = scores.columns[scores.columns.duplicated()].unique()
        raise ValueError(f"scores has several columns of the name {listing(twice)}.")
    words = [c for c in scores if not pd.api.types.is_numeric_dtype(scores[c])]
    if words:
        raise TypeError(f"scores must hold numbers, but these columns do not: {listing(words)}.")
    missing = [name for name in lower_is_better if name not in scores]
    if missing:
        raise KeyError(
            f"scores has no column {listing(missing)}: its columns are {listing(scores)}."
        )


def _is_best(goodness: pd.DataFrame, spreads: pd.DataFrame, digits: int) -> pd.DataFrame:
    """The best of every column, and what does not differ from it as printed or beyond chance."""
    best = goodness.max()
    spread_of_best = spreads.where(goodness.eq(best)).max().fillna(0.0)
    tolerance = spreads.fillna(0.0).clip(lower=spread_of_best, axis=1)
    printed = goodness.map(lambda value: float(f"{value:.{digits}f}"))
    alike = printed.eq(printed.max())
    return alike | ((best - goodness) < tolerance)


def _text(mean: float, spread: float, digits: int) -> str:
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if np.isnan(spread) else f" ± {spread:.{digits}f}")

"""How training went: the bound, how far the components spread, and their weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scmixvi._messages import listing
from scmixvi.pl._figures import check_figure, finished, panels

PANELS = {"bound": "elbo", "jsd": "jsd", "weights": "weight_"}
"""A panel's name, and how the names of its curves in the history begin."""

SPLITS = {"train": "training cells", "validation": "validation cells"}
HISTORIES = {"train": "history", "refine_encoders": "refinement_history"}
"""Methods that train, and the attributes with their metrics."""
SHOWN_FROM = 0.1
"""Share of the epochs after which the bound's curves decide the range of its axis."""
_ROUNDING = 3e-6
"""Share of a bound that two sums of its terms over an epoch may differ by."""


def training(
    model: Any,
    panel: str | Sequence[str] | None = None,
    *,
    method: str = "train",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes] | None:
    """Bound, posterior diversity and mixture weights against epochs, from the model's history.

    The bound is MISELBO at KL weight 1 in nats a cell, whatever the weight in training, so its
    values can be compared across epochs; epochs of the KL warm-up are shaded. The diversity is
    the mean JSD of the components in nats; the dashed line is its largest value, log S. Curves of
    training cells are averages over the steps of an epoch, with dropout on. The bound's axis
    leaves out what lies below the values from a tenth of the epochs on.

    Parameters
    ----------
    model
        A trained :class:`scmixvi.MixtureSCVI`, or any scvi-tools model with an ELBO.
    panel
        "bound", "jsd", "weights", or several; None is all that the history has. The weights are
        in it if they are learned or amortised.
    method
        What the epochs are of: "train", or "refine_encoders", whose training cells are resampled
        and so have another bound than those of "train".
    ax
        Axes to draw into; only for a single panel.
    show
        Show the figure and return nothing; None follows `scanpy.settings.autoshow`.
    save
        File to write the figure to; its ending chooses the format.

    Returns
    -------
    A list of axes, one a panel; the axes where `panel` is one name or `ax` is given; None if
    `show`.

    Raises
    ------
    ValueError
        If a panel or the method is unknown, the model has not been through the method, `ax` is
        given for several panels, or `save` names a folder, or a file in one that is not there.
    KeyError
        If the history has no curve for a panel.
    TypeError
        If `ax` is no matplotlib Axes or `save` no name of a file.

    Examples
    --------
    >>> model.train(check_val_every_n_epoch=1)
    >>> scmixvi.pl.training(model)
    """
    check_figure(ax, save)
    history = _history(model, method)
    labels = SPLITS if method == "train" else SPLITS | {"train": "training cells, resampled"}
    curves = {name: _curves(history, start, labels) for name, start in PANELS.items()}
    names = [panel] if isinstance(panel, str) else panel
    names = [n for n in PANELS if curves[n]] if names is None else list(names)
    _check(names, curves, history, ax)
    axes = [ax] if ax is not None else panels(len(names), 4.2, 3.2)
    n_components = getattr(model.module, "n_components", 1)
    for panel_axes, name in zip(axes, names, strict=True):
        _DRAW[name](curves[name], n_components, panel_axes)
        _shade_warmup(history, panel_axes)
        panel_axes.set(xlabel="epoch")
        panel_axes.legend(frameon=False)
    if finished(axes[0], show, save):
        return None
    return axes[0] if isinstance(panel, str) or ax is not None else axes


def _history(model: Any, method: str) -> dict[str, pd.DataFrame]:
    if method not in HISTORIES:
        raise ValueError(f"method must be one of {listing(HISTORIES)}, not {method!r}.")
    found = getattr(model, HISTORIES[method], None)
    if found is not None and not found:
        raise ValueError(
            f"the history of {method} is empty: it ran with logger=False, or with a logger of your "
            "own, which has the metrics in its place."
        )
    if not found:
        raise ValueError(
            f"the model has no history of {method}: call model.{method}() first, if it has it."
        )
    return found


def _curves(history: dict, start: str, labels: dict[str, str]) -> dict[str, pd.Series]:
    """The curves whose key begins so and ends in a split, by key; their labels are their names."""
    found = {}
    for key, frame in history.items():
        name, _, split = key.rpartition("_")
        if split in SPLITS and (name.startswith(start) if start[-1] == "_" else name == start):
            found[key] = frame.iloc[:, 0].astype(float).rename(labels[split])
    return found


def _check(names: list[str], curves: dict, history: dict, ax: Axes | None) -> None:
    unknown = [name for name in names if name not in PANELS]
    if unknown or not names:
        raise ValueError(
            f"panel must be one or more of {listing(PANELS)}, but it is {listing(unknown)}."
        )
    for name in names:
        if not curves[name]:
            raise KeyError(
                f"the history has no curve for the panel {name!r}: it has {listing(history)}."
            )
    if ax is not None and len(names) > 1:
        raise ValueError(
            f"ax takes one panel, not {len(names)}: name it, for example training(model, 'bound')."
        )


def _draw_bound(curves: dict[str, pd.Series], n_components: int, ax: Axes) -> None:
    shown = []
    for curve in curves.values():
        bound = -curve
        ax.plot(bound.index, bound, label=curve.name)
        shown.append(bound.iloc[int(SHOWN_FROM * len(bound)) :])
    values = pd.concat(shown)
    margin = 0.05 * (values.max() - values.min()) or 1.0
    ax.set(ylim=(values.min() - margin, values.max() + margin), ylabel="MISELBO (nats a cell)")
    if n_components == 1:
        ax.set_ylabel("ELBO (nats a cell)")


def _draw_jsd(curves: dict[str, pd.Series], n_components: int, ax: Axes) -> None:
    for curve in curves.values():
        ax.plot(curve.index, curve, label=curve.name)
    ax.axhline(np.log(n_components), color="grey", linestyle="--", label=f"log {n_components}")
    ax.set(ylim=(0, 1.05 * np.log(n_components)), ylabel="posterior diversity (nats)")


def _draw_weights(curves: dict[str, pd.Series], n_components: int, ax: Axes) -> None:
    trained = {key: curve for key, curve in curves.items() if key.endswith("_train")}
    for key, curve in trained.items():
        ax.plot(curve.index, curve, label=f"component {key.split('_')[1]}")
    ax.axhline(1 / n_components, color="grey", linestyle="--", label=f"1 / {n_components}")
    ax.set(ylim=(0, None), ylabel="mean weight of training cells")


def _shade_warmup(history: dict, ax: Axes) -> None:
    label = "KL warm-up"
    for start, end in _warmups(history):
        ax.axvspan(start, end, color="grey", alpha=0.12, label=label)
        label = None


def _warmups(history: dict) -> np.ndarray:
    """Begin and end, in epochs, of every time that the KL weight was below 1, `(n, 2)`.

    The weight is logged every few steps, not in every epoch. The loss is the negative bound but
    for the weight, where a model adds nothing else to it.
    """
    columns = {key: frame.iloc[:, 0].astype(float) for key, frame in history.items()}
    loss, elbo = columns.get("train_loss"), columns.get("elbo_train")
    if loss is not None and elbo is not None and (loss <= elbo + _ROUNDING * elbo.abs()).all():
        warming = loss < elbo - _ROUNDING * elbo.abs()
    elif "kl_weight" in columns:
        weight = columns["kl_weight"].groupby(level=0).last()
        warming = weight.reindex(range(weight.index.max() + 1)).bfill() < 1
    else:
        return np.empty((0, 2), int)
    edges = np.flatnonzero(np.diff(warming.to_numpy(int), prepend=0, append=0))
    return edges.reshape(-1, 2)


_DRAW = {"bound": _draw_bound, "jsd": _draw_jsd, "weights": _draw_weights}

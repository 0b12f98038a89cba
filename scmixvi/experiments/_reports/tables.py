"""What the reports share: figures of a run by seed, and plots with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from scmixvi.experiments._common import NOT_RUN, by_seed, interval
from scmixvi.records import read

Runs = Mapping[str, dict]
Values = dict[int, float]


def load(results: Path, name: str) -> Runs:
    """The runs of an experiment; none where there is no JSON."""
    return read(results / name, {"runs": {}})["runs"]


def pick(runs: Runs, name: str, *path: str) -> Values:
    """One figure of a job for every seed that has it; `path` leads to it."""
    found = {}
    for seed, run in by_seed(runs, name).items():
        value: Any = run
        for key in path:
            value = value.get(key, {})
        if value != {}:
            found[seed] = value
    return found


def seeds(runs: Runs) -> str:
    """A sentence about how many seeds there are."""
    found = sorted({int(key.rpartition("seed=")[2]) for key in runs})
    if not found:
        return "No seed has been run."
    many = "s" if len(found) > 1 else ""
    return f"{len(found)} seed{many}: {', '.join(map(str, found))}."


def joined(parts: Sequence[str]) -> str:
    """Paragraphs and tables of a page."""
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def errorbars(
    ax: plt.Axes, by_size: Mapping[float, Values], label: str | None, **style: Any
) -> None:
    """Mean and 95 % interval over seeds against S; "not run" where there is nothing."""
    found = {s: interval(list(values.values())) for s, values in by_size.items() if values}
    if not found:
        ax.text(0.5, 0.5, NOT_RUN, ha="center", transform=ax.transAxes)
        return
    means, halves = zip(*found.values(), strict=True)
    halves = [0 if math.isnan(half) else half for half in halves]
    style = {"marker": "o", "markersize": 4, "capsize": 3, "label": label} | style
    ax.errorbar(list(found), means, halves, **style)


def settings_figure(
    path: Path,
    panels: Mapping[str, Callable[[str, str, int], Values]],
    labels: Sequence[str],
    settings: Sequence[tuple[str, int]],
    level: float,
    ylabel: str,
) -> None:
    """Mean and interval over seeds of several things side by side, for every data set and S.

    Parameters
    ----------
    path
        Of the PNG.
    panels
        Title to a function from one of the labels, data set and S to values by seed.
    labels
        Of what stands side by side.
    settings
        Data sets and S.
    level
        Of a line for orientation.
    ylabel
        Of the first panel.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(9, 3.2), sharey=True)
    for ax, (title, values_of) in zip(axes, panels.items(), strict=True):
        for shift, label in enumerate(labels):
            found = {
                place + 0.2 * (shift - (len(labels) - 1) / 2): values_of(label, *setting)
                for place, setting in enumerate(settings)
            }
            errorbars(ax, found, label, linestyle="none")
        ax.axhline(level, color="0.7", linewidth=0.8)
        ax.set(title=title, xticks=range(len(settings)))
        names = [f"{name}, S = {size}" for name, size in settings]
        ax.set_xticklabels(names, rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel(ylabel)
    finish(fig, axes, path)


def finish(fig: plt.Figure, axes: list, path: Path) -> None:
    """Add a legend where there are labels, and write the figure."""
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=80)
    plt.close(fig)

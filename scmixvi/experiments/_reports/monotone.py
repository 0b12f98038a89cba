"""Is the NLL a non-increasing function of S? A verdict from paired differences."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments import cortex, monotone
from scmixvi.experiments._common import NOT_RUN, cell, interval, markdown, paired
from scmixvi.experiments._reports.cortex import MIXTURE, SIZES
from scmixvi.experiments._reports.image_tables import note
from scmixvi.experiments._reports.tables import Runs, Values, errorbars, finish, joined, load, pick
from scmixvi.records import read

ESTIMATORS = {"Eq. 17": "log_likelihood_eq17", "pooled": "log_likelihood"}
"""How draws become an NLL: one logarithm a component, or one for all."""

IMAGE_DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}

NLLs = dict[str, dict[int, Values]]
"""Data set to S to NLL by seed."""


def all_nlls(results: Path, estimator: str) -> NLLs:
    """From cortex, monotone and the image experiments (`nll` and, pooled, `nll_pooled`)."""
    image_key = "nll" if estimator == "Eq. 17" else "nll_pooled"
    return _all(results, ESTIMATORS[estimator], image_key, -1)


def all_gaps(results: Path) -> NLLs:
    """The pooled log-likelihood, itself a lower bound, minus MISELBO, as :func:`all_nlls`."""
    return _all(results, "gap", "gap", 1)


def image_notes(results: Path) -> list[str]:
    """How the models of images were trained, a data set each, and where that is less."""
    content = read(results / "monotone_images.json", {"runs": {}})
    runs, smoke = content["runs"], content.get("smoke", False)
    return [
        f"{IMAGE_DATA.get(data, data)} (MLP): "
        + note({key: run for key, run in runs.items() if key.startswith(f"{data}/")}, smoke)
        for data in _data_sets(runs, "mnist")
    ]


def _all(results: Path, key: str, image_key: str, sign: int) -> NLLs:
    """A figure of every data set; those of cells are multiplied by the sign."""
    found = {"cortex (scVI)": _figures(load(results, cortex.RESULT.name), MIXTURE, key, sign)}
    runs = load(results, monotone.RESULT.name)
    for data in _data_sets(runs, "sc_mixology", "pbmc68k"):
        found[f"{data} (scVI)"] = _figures(runs, data + "/S={}", key, sign)
    runs = load(results, "monotone_images.json")
    for data in _data_sets(runs, "mnist"):
        found[f"{IMAGE_DATA.get(data, data)} (MLP)"] = _figures(runs, data + "/S={}", image_key, 1)
    return found


def _data_sets(runs: Runs, *known: str) -> list[str]:
    return list(dict.fromkeys([*known, *(key.partition("/")[0] for key in runs)]))


def _figures(runs: Runs, job: str, key: str, sign: int) -> dict[int, Values]:
    return {
        s: {seed: sign * v for seed, v in pick(runs, job.format(s), key).items()} for s in SIZES
    }


def verdict(differences: list[float]) -> str:
    """What the interval of the mean difference NLL(S + 1) - NLL(S) says about the claim.

    "holds": it lies at or below 0. "fails": above 0. "undecided": it holds 0, or one seed is too
    few for an interval.
    """
    if not differences:
        return NOT_RUN
    mean, half = interval(differences)
    if mean + half <= 0:
        return "holds"
    return "fails" if mean - half > 0 else "undecided"


def monotone_tables(nlls: dict[str, NLLs], gaps: NLLs, notes: Sequence[str] = ()) -> str:
    """NLL against S, every step's paired difference with its verdict, and the gap against S.

    Notes stand below the first table.
    """
    data_sets = list(nlls["Eq. 17"])
    levels = [
        [data, estimator, *(cell(list(found[data][s].values())) for s in SIZES)]
        for data in data_sets
        for estimator, found in nlls.items()
    ]
    steps = [
        [data, f"{size} to {size + 1}", *_step(nlls["Eq. 17"][data], size)]
        + _step(nlls["pooled"][data], size)
        for data in data_sets
        for size in SIZES[:-1]
    ]
    parts = [
        "NLL in nats a cell or image, mean ± half the 95 % t-interval over seeds. For cells every "
        "S has the same number of draws, so that Eq. 17, which is the paper's, takes S logarithms "
        "of fewer draws each, while the pooled estimate, a tighter bound, takes one of all.",
        markdown(["", "estimator", *(f"S = {s}" for s in SIZES)], levels),
        *notes,
        "**NLL(S + 1) minus NLL(S)**, paired by seed: mean with interval, in how many seeds it is "
        "not positive, and what the interval says of the claim that it never is: *holds* (the "
        "interval is at or below 0), *fails* (above 0) or *undecided*.",
        markdown(["", "S", *(f"{e}: {h}" for e in nlls for h in STEP_HEADER)], steps),
        "**The gap** from the pooled estimate down to MISELBO. That estimate is a lower bound too, "
        "tighter for a better proposal: a better posterior can win at least this.",
        markdown(
            ["", *(f"S = {s}" for s in SIZES)],
            [[data, *(cell(list(gaps[data][s].values())) for s in SIZES)] for data in data_sets],
        ),
    ]
    return joined(parts)


STEP_HEADER = ("difference", "seeds", "verdict")


def _step(by_size: dict[int, Values], size: int) -> list[str]:
    differences = paired(by_size[size + 1], by_size[size])
    share = f"{sum(d <= 0 for d in differences)} of {len(differences)}"
    return [
        cell(differences, sign=True),
        share if differences else NOT_RUN,
        verdict(differences),
    ]


def monotone_figure(nlls: dict[str, NLLs], path: Path) -> None:
    """NLL minus that of S = 1 by each estimator, a panel a data set."""
    data_sets = list(nlls["Eq. 17"])
    fig, axes = plt.subplots(1, len(data_sets), figsize=(2.8 * len(data_sets), 3))
    for ax, data in zip(axes, data_sets, strict=True):
        for estimator, found in nlls.items():
            one = found[data][1]
            relative = {s: dict(enumerate(paired(v, one))) for s, v in found[data].items()}
            errorbars(ax, relative, estimator)
        ax.axhline(0, color="0.7", linewidth=0.8)
        ax.set(title=data, xlabel="S", xticks=SIZES)
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("NLL minus that of S = 1 (nats)")
    finish(fig, axes, path)

"""Tables and figures of the image models (`image_nll`), beside the paper's numbers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from scmixvi.experiments import image_nll
from scmixvi.experiments._common import NOT_RUN, by_seed, cell, markdown, paired
from scmixvi.experiments._reports.image_tables import note, row
from scmixvi.experiments._reports.paper_images import (
    NOT_SHOWN,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    VANILLA_10,
)
from scmixvi.experiments._reports.tables import Runs, pick

RECIPE_LABELS = {
    "vanilla": "vanilla",
    "hierarchical": "hierarchical",
    "iaf": "IAF",
    "vamp": "VampPrior",
    "composite": "composite",
}
ESTIMATES = {"nll": "", "nll_pooled": ", one logarithm", "nll_refined": ", refined"}
"""Figure of a run, and what stands behind a model's name in its row."""

CHANGE = "nll_change_by_batch_norm"

TABLE_3_ESTIMATES = {"nll": "here", "nll_refined": "here, refined"}

MORE = range(5, 11)
"""S beyond the paper's tables."""


def image_nll_tables(runs: Runs, smoke: bool) -> str:
    """Tables 1, 2 and 3, and S > 4 on MNIST."""
    header = ["", *(f"S = {s}" for s in range(1, 5))]
    mnist, fashion, cifar = (
        {name: run for name, run in runs.items() if name.startswith(f"{dataset}/")}
        for dataset in image_nll.DATASETS
    )
    cifar_names = ("CIFAR-10, bits a dimension", "CIFAR-10, paper")
    cifar_paper = image_nll.CIFAR_SCHEME
    return "\n".join(
        [
            "**MNIST: test negative log-likelihood, nats (Table 1)**\n",
            markdown(header, _recipe_rows(mnist, "mnist", _TABLE_1_TEXT)),
            "**MNIST: more components, nats (Figure 3; the composite is not in the paper)**\n",
            markdown(["", *(f"S = {s}" for s in MORE)], _more_rows(mnist)),
            "**MNIST: by how much batch norm as in the released code changes the NLL, nats**\n",
            markdown(header, _changes(mnist, range(1, 5))),
            note(mnist, smoke, paper_runs=3),
            "**Fashion-MNIST: test negative log-likelihood, nats (Table 2)**\n",
            markdown(header, _recipe_rows(fashion, "fashion_mnist", TABLE_2)),
            note(fashion, smoke),
            "**CIFAR-10 (Table 2)**\n",
            markdown(
                header,
                [
                    [
                        cifar_names[0],
                        *row(cifar, "cifar10/cifar_vanilla/S={s}", range(1, 5), "bits_per_dim"),
                    ],
                    [cifar_names[1], *TABLE_2["cifar_vanilla"]],
                ],
            ),
            _subset_note(cifar) + note(cifar, smoke, cifar_paper),
            "**MNIST: beside other VAEs, nats (Table 3)**\n",
            markdown(["", "paper", *TABLE_3_ESTIMATES.values()], _table_3(mnist)),
        ]
    )


_TABLE_1_TEXT = {
    recipe: tuple(f"{mean:.2f} ± {sd:.2f}" for mean, sd in cells)
    for recipe, cells in TABLE_1.items()
}


def _recipe_rows(runs: Runs, dataset: str, paper: Mapping[str, Sequence[str]]) -> list[list[str]]:
    rows = []
    for recipe, label in RECIPE_LABELS.items():
        pattern = f"{dataset}/{recipe}/S={{s}}"
        found = [[label + k, *row(runs, pattern, range(1, 5), e)] for e, k in ESTIMATES.items()]
        if recipe in paper:
            found.insert(1, [f"{label}, paper", *paper[recipe]])
        rows += found
    return rows


def _changes(runs: Runs, components: Sequence[int]) -> list[list[str]]:
    patterns = {label: f"mnist/{recipe}/S={{s}}" for recipe, label in RECIPE_LABELS.items()}
    return [
        [label, *row(runs, pattern, components, CHANGE, sign=True)]
        for label, pattern in patterns.items()
    ]


def short_tables(runs: Runs, smoke: bool) -> str:
    """The vanilla model on MNIST after few epochs, seed by seed, beside the paper's figures."""
    known = sorted({int(name.split("S=")[1].split("/")[0]) for name in runs}) or [1, 4]
    paper = dict(enumerate(_TABLE_1_TEXT["vanilla"], start=1))
    nll = {key: {s: pick(runs, f"mnist/vanilla/S={s}", key) for s in known} for key in ESTIMATES}
    bounds = [_val_bounds(runs, f"mnist/vanilla/S={s}") for s in known]
    changes = [pick(runs, f"mnist/vanilla/S={s}", CHANGE) for s in known]
    rows = [["best MISELBO on validation images", *map(_listed, bounds)]]
    for key, label in ESTIMATES.items():
        rows.append([f"NLL{label}", *(_listed(nll[key][s].values()) for s in known)])
    rows.append(["NLL, paper", *(paper.get(s, NOT_SHOWN) for s in known)])
    for key, label in ESTIMATES.items():
        over = [_listed(paired(nll[key][s], nll[key].get(1, {})), "+.2f") for s in known[1:]]
        rows.append([f"NLL{label}, less S = 1's", NOT_SHOWN, *over])
    name = "NLL, change by batch norm as in the released code"
    rows.append([name, *(_listed(change.values(), "+.2f") for change in changes)])
    table = markdown(["MNIST, vanilla", *(f"S = {s}" for s in known)], rows)
    return f"{table}\n{_tested_note(runs)}{note(runs, smoke, paper_runs=3)}"


def _val_bounds(runs: Runs, name: str) -> list[float]:
    return [run["trainings"][0]["val_bound"] for run in by_seed(runs, name).values()]


def _listed(values: Iterable[float], digits: str = ".2f") -> str:
    """Of every seed, for few seeds whose interval would say little."""
    return ", ".join(f"{value:{digits}}" for value in values) or NOT_RUN


def _tested_note(runs: Runs) -> str:
    tested = sorted({run["n_test_images"] for run in runs.values()})
    precisions = sorted({run["trainings"][0]["precision"] for run in runs.values()})
    if not runs:
        return ""
    return (
        f"Tested on {' and '.join(map(str, tested))} of the 10,000 test images, evenly spaced; "
        f"trained in {' and '.join(precisions)}. "
    )


def paper_table_1() -> str:
    """The means of the paper's Table 1 alone, with the names of the recipes."""
    rows = [[f"`{r}`", *(f"{mean:.2f}" for mean, _ in cells)] for r, cells in TABLE_1.items()]
    return markdown(["paper, MNIST", *(f"S = {s}" for s in range(1, 5))], rows)


def _more_rows(runs: Runs) -> list[list[str]]:
    """Vanilla and composite with S > 4; a dash where no run is planned."""
    rows = []
    for recipe in ("vanilla", "composite"):
        planned = {
            s
            for data, name, some in image_nll.ROWS
            if (data, name) == ("mnist", recipe)
            for s in some
        }
        for key, label in ESTIMATES.items():
            cells = row(runs, f"mnist/{recipe}/S={{s}}", MORE, key)
            shown = [c if s in planned else NOT_SHOWN for s, c in zip(MORE, cells, strict=True)]
            rows.append([RECIPE_LABELS[recipe] + label, *shown])
    paper = [f"{VANILLA_10}" if s == 10 else NOT_SHOWN for s in MORE]
    return [rows[0], ["vanilla, paper", *paper], *rows[1:]]


def _subset_note(runs: Runs) -> str:
    if not any(run["data"].endswith("_subset") for run in runs.values()):
        return ""
    return (
        "Trained and tested on a subset of CIFAR-10 (12,000 and 3,000 images): **not comparable "
        "with the paper's or any published figure.** "
    )


def _table_3(runs: Runs) -> list[list[str]]:
    rows = [[name, nll, NOT_SHOWN, NOT_SHOWN] for name, nll in TABLE_3]
    ours = (
        ("hierarchical with VampPrior, S = 1", "as above", "hierarchical_vamp/S=1"),
        ("vanilla, S = 10", f"{VANILLA_10}", "vanilla/S=10"),
        ("composite, S = 4", _TABLE_1_TEXT["composite"][3], "composite/S=4"),
    )
    for label, paper, name in ours:
        found = (cell(list(pick(runs, f"mnist/{name}", e).values())) for e in TABLE_3_ESTIMATES)
        rows.append([label, paper, *found])
    return rows


def figure_2(runs: Runs, path: Path) -> None:
    """NLL on MNIST against S for every recipe, one standard deviation over seeds (Fig. 2)."""
    fig, axes = plt.subplots(1, len(RECIPE_LABELS), figsize=(15, 3), sharex=True)
    for ax, (recipe, label) in zip(axes, RECIPE_LABELS.items(), strict=True):
        mean, sd = zip(*TABLE_1[recipe], strict=True)
        ax.errorbar(range(1, 5), mean, sd, fmt="o--", color="0.6", capsize=3, label="paper")
        _draw_runs(ax, runs, recipe, range(1, 5))
        ax.set(title=label, xlabel="S", xticks=range(1, 5))
    axes[0].set_ylabel("test NLL, nats")
    axes[0].legend()
    _save(fig, path)


def figure_3(runs: Runs, path: Path) -> None:
    """NLL on MNIST of the vanilla model against S = 1 to 10 (Fig. 3)."""
    fig, ax = plt.subplots(figsize=(5, 3.5))
    mean = [m for m, _ in TABLE_1["vanilla"]]
    ax.plot([1, 2, 3, 4, 10], [*mean, VANILLA_10], "o--", color="0.6", label="paper")
    _draw_runs(ax, runs, "vanilla", range(1, 11))
    ax.set(xlabel="S", ylabel="test NLL, nats", xticks=range(1, 11))
    ax.legend()
    _save(fig, path)


def _draw_runs(ax: Axes, runs: Runs, recipe: str, components: Sequence[int]) -> None:
    found = {s: list(pick(runs, f"mnist/{recipe}/S={s}", "nll").values()) for s in components}
    found = {s: nll for s, nll in found.items() if nll}
    if not found:
        ax.text(0.5, 0.95, NOT_RUN, transform=ax.transAxes, ha="center", va="top")
        return
    mean = [np.mean(nll) for nll in found.values()]
    sd = [np.std(nll, ddof=1) if len(nll) > 1 else 0 for nll in found.values()]
    ax.errorbar(list(found), mean, sd, fmt="o-", capsize=3, label="here")


def _save(fig: plt.Figure, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=80)
    plt.close(fig)

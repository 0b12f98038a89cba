"""The variational gap, split into what families leave and what encoders lose."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments import inference_gap_images
from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._families import FAMILIES
from scmixvi.experiments._reports.decoders import DATASETS
from scmixvi.experiments._reports.image_tables import note
from scmixvi.experiments._reports.refinement import GROUPS, SCORES
from scmixvi.experiments._reports.tables import Runs, Values, errorbars, joined, pick, seeds
from scmixvi.experiments.decoders import COMPONENTS, WITH_DEFAULTS
from scmixvi.experiments.inference_gap import STAGES, STEPS

MODELS = {
    **{f"{data}/mixture": data for data in DATASETS},
    **{f"{data}/default": f"{data}, defaults" for data in WITH_DEFAULTS},
}
OWN_FAMILY = {1: FAMILIES[0], 4: FAMILIES[2]}
COLUMNS = ("encoders", *(f"{n} steps" for n in STEPS), *FAMILIES)
DERIVED = ("amortisation", "its share, %", "four in place of one")


def rows() -> Iterator[tuple[str, int, str]]:
    """Model's label, S and the name of its job."""
    for model, label in MODELS.items():
        for size in COMPONENTS:
            yield label, size, f"{model}/S={size}"


def gap_cells(runs: Runs, job: str, size: int, group: str, columns: Sequence[str]) -> list[str]:
    """Cells of one model: its gaps, and what is derived from them.

    That is what encoders lose against the best of their family, in nats and as a share of the gap,
    and what the best four Gaussians win over the best one.
    """
    gaps = {c: pick(runs, job, group, f"gap/{c}") for c in (*columns, *FAMILIES)}
    lost = paired(gaps["encoders"], gaps[OWN_FAMILY[size]])
    share = [part / gap for part, gap in zip(lost, gaps["encoders"].values(), strict=True)]
    won = paired(gaps[FAMILIES[0]], gaps[FAMILIES[2]])
    own = [cell(list(gaps[c].values())) for c in columns]
    return [*own, cell(lost), cell(share, 0, 100), cell(won)]


def inference_gap_tables(runs: Runs) -> str:
    """Gaps by family, what 90 % of q cover, and scores of refined means."""
    parts = [
        f"{seeds(runs)} Nats a cell, mean ± half the 95 % t-interval over seeds.",
    ]
    for group, label in GROUPS.items():
        table = []
        for name, size, job in rows():
            table.append([name, size, *gap_cells(runs, job, size, group, COLUMNS)])
        header = ["", "S", *COLUMNS, *DERIVED]
        parts += [f"**The gap, {label}.**", markdown(header, table)]
    parts.append(
        "**What holds 90 % of q**, and the share of the exact posterior inside it, in per cent: "
        "the densest region of z, and the central interval of a gene's expression, mean over "
        "genes. Effective draws: of 400 of the exact posterior, in per cent."
    )
    for group, label in GROUPS.items():
        parts += [f"*{label[0].upper()}{label[1:]}*", covered_table(runs, group)]
    parts += [
        "**Scores of the means, cortex, held-out cells**, as in Tables 6 and 9, and what "
        "steps add.",
        scores_table(runs),
    ]
    return joined(parts)


def image_gap_tables(runs: Runs, smoke: bool) -> str:
    """Gaps by family of images, test and training."""
    columns = ("encoders", f"{inference_gap_images.STEPS} steps", *FAMILIES)
    table = []
    for size, (group, label) in product(inference_gap_images.COMPONENTS, GROUPS.items()):
        job = f"mnist/mixture/S={size}"
        label = label.replace("cells", "images").replace("held-out", "test")
        table.append([size, label, *gap_cells(runs, job, size, group, columns)])
    parts = [
        "Nats an image, mean ± half the 95 % t-interval over seeds.",
        markdown(["S", "", *columns, *DERIVED], table),
        note(runs, smoke),
    ]
    return joined(parts)


def covered_table(runs: Runs, group: str) -> str:
    """What 90 % of the encoders' q and of the refined one cover, of one group of cells."""
    table = []
    for name, size, job in rows():
        row: list[object] = [name, size]
        for what in ("covered", "expression"):
            for stage in STAGES:
                found = pick(runs, job, group, f"{what}/{stage}")
                row.append(cell(list(found.values()), 1, 100))
        effective = pick(runs, job, group, "effective_share_exact")
        table.append([*row, cell(list(effective.values()), 0, 100)])
    header = [f"{what}, {stage}" for what in ("z", "expression") for stage in STAGES]
    header.append("effective draws, %")
    return markdown(["", "S", *header], table)


def scores_table(runs: Runs) -> str:
    """Classifier and clusters, before and what refinement adds."""
    table = []
    for name, size, job in rows():
        if not name.startswith("cortex"):
            continue
        for stage in STAGES:
            row: list[object] = [name, size, stage]
            for score in SCORES:
                found = pick(runs, job, f"scores/{stage}", score)
                if stage == "encoders":
                    row.append(cell(list(found.values()), 3))
                else:
                    before = pick(runs, job, "scores/encoders", score)
                    row.append(cell(paired(found, before), 3, sign=True))
            table.append(row)
    return markdown(["", "S", "", "SVM", "SVM, train to test", "ARI", "NMI"], table)


def inference_gap_figure(runs: Runs, path: Path) -> None:
    """The gap as the encoders leave it, after some steps, and at the best of each family."""
    fig, axes = plt.subplots(1, len(GROUPS), figsize=(9, 3.4), sharey=True)
    for ax, (group, title) in zip(axes, GROUPS.items(), strict=True):
        shown = [row for row in rows() if pick(runs, row[2], group)] or list(rows())
        for shift, (name, size, job) in enumerate(shown):
            found: dict[float, Values] = {
                place + 0.07 * (shift - (len(shown) - 1) / 2): pick(
                    runs, job, group, f"gap/{column}"
                )
                for place, column in enumerate(COLUMNS)
            }
            errorbars(ax, found, f"{name}, S = {size}", linestyle="none", capsize=1.5)
        ax.set(title=title, xticks=range(len(COLUMNS)), yscale="log")
        ax.set_xticklabels(COLUMNS, rotation=20, ha="right", fontsize=8)
    axes[0].set_ylabel("log p(x) - MISELBO (nats a cell)")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=7, loc="center right")
    for ax in axes:
        ax.grid(axis="y", color="0.9")
    fig.tight_layout(rect=(0, 0, 0.82, 1))
    fig.savefig(path, dpi=80)
    plt.close(fig)

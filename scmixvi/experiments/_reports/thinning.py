"""Encoders that see a part of each cell in training, against those that see all of it."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._reports.decoders import DATASETS
from scmixvi.experiments._reports.refinement import GROUPS, SCORES
from scmixvi.experiments._reports.tables import Runs, Values, joined, pick, seeds, settings_figure
from scmixvi.experiments.decoders import COMPONENTS
from scmixvi.experiments.thinning import ARMS, REFINED

FIGURES = {"log_p": "log p(x)", "miselbo": "MISELBO", "gap": "gap"}
CHANGED = ARMS[1:]


def rows(arms: tuple[str, ...] = CHANGED) -> Iterator[tuple[str, int, str]]:
    """Data set, S and arm of every row."""
    return product(DATASETS, COMPONENTS, arms)


def gained(runs: Runs, name: str, size: int, arm: str, *path: str) -> list[float]:
    """A figure of one arm minus that of the defaults, for every seed."""
    jobs = [f"{name}/{a}/S={size}" for a in (arm, ARMS[0])]
    return paired(*(pick(runs, job, *path) for job in jobs))


def thinning_tables(runs: Runs) -> str:
    """What noise on the encoders' side adds, and the scores of the means on cortex."""
    parts = [
        f"{seeds(runs)} Nats a cell, mean ± half the 95 % t-interval over seeds; below the row of "
        "the defaults what each change adds, paired by seed."
    ]
    for group, label in GROUPS.items():
        table = []
        for name, size, arm in rows(ARMS):
            row: list[object] = [name, size, arm]
            for key in FIGURES:
                found = pick(runs, f"{name}/{arm}/S={size}", group, key)
                first = arm == ARMS[0]
                values = (
                    list(found.values()) if first else gained(runs, name, size, arm, group, key)
                )
                row.append(cell(values, sign=not first))
            table.append(row)
        header = ["", "S", "", *FIGURES.values()]
        parts += [f"**{label[0].upper()}{label[1:]}**", markdown(header, table)]
    parts += [
        "**With refine_encoders afterwards**, MISELBO: what it adds to each, and "
        "what is left between the two.",
        refined_table(runs),
        "**What 90 % of the encoders' q hold** of the exact posterior, per cent: of z the densest "
        "region, of expression the central interval of a gene, mean over genes.",
        coverage_table(runs),
        "**Four components against one**, held-out cells.",
        components_table(runs),
        "**Scores of the means, cortex, held-out cells**, as in Tables 6 and 9, and what each "
        "change adds.",
        scores_table(runs),
    ]
    return joined(parts)


def refined_table(runs: Runs) -> str:
    """What `refine_encoders` adds to the defaults and to thinning, and thinning to it."""
    table = []
    for name, size in product(DATASETS, COMPONENTS):
        row: list[object] = [name, size]
        for group in GROUPS:
            before, after = (
                [pick(runs, f"{name}/{a}{stage}/S={size}", group, "miselbo") for a in REFINED]
                for stage in ("", ", refined")
            )
            gains = [paired(*pair) for pair in zip(after, before, strict=True)]
            row += [cell(values, sign=True) for values in (*gains, paired(after[1], after[0]))]
        table.append(row)
    added = [f"added to {arm}" for arm in REFINED]
    header = [f"{c}, {g}" for g in GROUPS.values() for c in (*added, "thinned minus default")]
    return markdown(["", "S", *header], table)


def coverage_table(runs: Runs) -> str:
    """What 90 % of q hold of the exact posterior, by arm."""
    table = []
    for name, size, arm in rows(ARMS):
        row: list[object] = [name, size, arm]
        for what, group in product(("covered", "expression"), GROUPS):
            found = pick(runs, f"{name}/{arm}, coverage/S={size}", group, f"{what}/encoders")
            row.append(cell(list(found.values()), 1, 100))
        table.append(row)
    header = [f"{what}, {label}" for what in ("z", "expression") for label in GROUPS.values()]
    return markdown(["", "S", "", *header], table)


def components_table(runs: Runs) -> str:
    """S = 4 minus S = 1 of held-out cells, by arm."""
    table = []
    for name, arm in product(DATASETS, ARMS):
        jobs = [f"{name}/{arm}/S={size}" for size in reversed(COMPONENTS)]
        found = [paired(*(pick(runs, job, "test", key) for job in jobs)) for key in FIGURES]
        table.append([name, arm, *(cell(values, sign=True) for values in found)])
    return markdown(["", "", *FIGURES.values()], table)


def scores_table(runs: Runs) -> str:
    """Classifier and clusters on the means."""
    table = []
    for name, size, arm in rows(ARMS):
        if name != "cortex":
            continue
        row: list[object] = [size, arm]
        for score in SCORES:
            found = pick(runs, f"{name}/{arm}/S={size}", "scores", score)
            first = arm == ARMS[0]
            values = (
                list(found.values()) if first else gained(runs, name, size, arm, "scores", score)
            )
            row.append(cell(values, 3, sign=not first))
        table.append(row)
    return markdown(["S", "", "SVM", "SVM, train to test", "ARI", "NMI"], table)


def thinning_figure(runs: Runs, path: Path) -> None:
    """What each change adds to log p(x) and to MISELBO of held-out cells."""

    def values_of(key: str, arm: str, name: str, size: int) -> Values:
        return dict(enumerate(gained(runs, name, size, arm, "test", key)))

    shown = {"log_p": "log p(x)", "miselbo": "MISELBO"}
    panels = {f"{title}, held-out cells": partial(values_of, key) for key, title in shown.items()}
    settings = list(product(DATASETS, COMPONENTS))
    settings_figure(path, panels, CHANGED, settings, 0, "gained (nats a cell)")

"""Which posteriors of half a cell foretell the other half."""

from functools import partial
from itertools import product
from pathlib import Path

from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._reports.decoders import DATASETS
from scmixvi.experiments._reports.tables import Runs, Values, joined, pick, seeds, settings_figure
from scmixvi.experiments.decoders import COMPONENTS
from scmixvi.experiments.halves import LATENT, MODELS, POWERS, SUMS

STAGES = (*SUMS, *LATENT)
CONTRASTS = {
    f"{SUMS[1]} - {SUMS[0]}": (SUMS[1], SUMS[0]),
    f"{SUMS[2]} - {SUMS[1]}": (SUMS[2], SUMS[1]),
    "exact, depth latent - exact": (LATENT[1], SUMS[2]),
    f"exact, depth latent - {SUMS[0]}": (LATENT[1], SUMS[0]),
}


def halves_tables(runs: Runs) -> str:
    """Scores beside those of one encoder, and what differs between posteriors and models."""
    parts = [
        f"{seeds(runs)} Mean ± half the 95 % t-interval over seeds, nats a cell; higher is better.",
        "**Log p(other half | half)** of one encoder as SCVI has it, and what is added to it.",
        scores_table(runs),
        "**Differences between posteriors** of one model.",
        contrasts_table(runs),
        "**Four encoders minus one**, by posterior.",
        sizes_table(runs),
        "**Less sure than exact**: the score of the posterior in proportion to p(half | z)^b p(z), "
        "minus that of b = 1, default models.",
        powers_table(runs),
    ]
    return joined(parts)


def of(runs: Runs, kind: str, name: str, size: int, stage: str) -> Values:
    """Scores by seed."""
    return pick(runs, f"{name}/{kind}/S={size}", stage)


def scores_table(runs: Runs) -> str:
    """The score of one default encoder, and of everything else minus that."""
    table = []
    for name, kind, size in product(DATASETS, MODELS, COMPONENTS):
        base = of(runs, "default", name, 1, SUMS[0])
        row: list[object] = [name, kind, size, cell(list(base.values()), 1)]
        for stage in STAGES:
            added = paired(of(runs, kind, name, size, stage), base)
            row.append(cell(added, 1, sign=True))
        table.append(row)
    return markdown(["", "", "S", "one encoder", *STAGES], table)


def contrasts_table(runs: Runs) -> str:
    """Differences between posteriors."""
    table = []
    for name, kind, size in product(DATASETS, MODELS, COMPONENTS):
        row: list[object] = [name, kind, size]
        for pair in CONTRASTS.values():
            scores = (of(runs, kind, name, size, stage) for stage in pair)
            row.append(cell(paired(*scores), 2, sign=True))
        table.append(row)
    return markdown(["", "", "S", *CONTRASTS], table)


def sizes_table(runs: Runs) -> str:
    """Four encoders minus one."""
    table = []
    for name, kind in product(DATASETS, MODELS):
        row: list[object] = [name, kind]
        for stage in STAGES:
            scores = (of(runs, kind, name, size, stage) for size in reversed(COMPONENTS))
            row.append(cell(paired(*scores), 2, sign=True))
        table.append(row)
    return markdown(["", "", *STAGES], table)


def powers_table(runs: Runs) -> str:
    """What powers of the likelihood below 1 add."""
    table = []
    for name, size in product(DATASETS, COMPONENTS):
        row: list[object] = [name, size]
        exact = of(runs, "powers", name, size, f"power {POWERS[-1]}")
        for power in POWERS[:-1]:
            found = of(runs, "powers", name, size, f"power {power}")
            row.append(cell(paired(found, exact), 2, sign=True))
        table.append(row)
    return markdown(["", "S", *(f"b = {power}" for power in POWERS[:-1])], table)


def halves_figure(runs: Runs, path: Path) -> None:
    """What posteriors add to the score of one default encoder."""

    def values_of(kind: str, stage: str, name: str, size: int) -> Values:
        found, base = of(runs, kind, name, size, stage), of(runs, "default", name, 1, SUMS[0])
        return {seed: found[seed] - base[seed] for seed in found if seed in base}

    panels = {kind: partial(values_of, kind) for kind in MODELS}
    settings = list(product(DATASETS, COMPONENTS))
    label = "gain over one encoder (nats a cell)"
    settings_figure(path, panels, (*SUMS[:2], LATENT[1]), settings, 0, label)

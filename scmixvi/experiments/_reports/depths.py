"""What posteriors hold once a cell's depth is latent, and how far encoders of depths are off."""

from itertools import product
from pathlib import Path

from scmixvi.experiments._common import cell, markdown
from scmixvi.experiments._reports.calibration import calibration_figure, intervals_table
from scmixvi.experiments._reports.decoders import DATASETS
from scmixvi.experiments._reports.tables import Runs, joined, pick, seeds
from scmixvi.experiments.decoders import COMPONENTS
from scmixvi.experiments.depths import STEPS

KINDS = {"trained with sums": ("inferred",), "trained so": ("latent",)}
GROUPS = {"test": "held-out cells", "training": "training cells"}
CHANGES = ("width", "shift")


def depths_tables(runs: Runs) -> str:
    """What intervals hold with latent depths, what changes of real cells, and gaps."""
    of_kind = {
        kind: {key: run for key, run in runs.items() if f"/{kind}/" in key}
        for kind in ("inferred", "latent")
    }
    parts = [
        f"Models that were trained with sums: {seeds(of_kind['inferred'])} Trained with latent "
        f"depths: {seeds(of_kind['latent'])} Mean ± half the 95 % t-interval over seeds.",
        "**Cells that the model draws**, posteriors of latent depths: how many of the central "
        "intervals that should hold 90 % hold the truth, per cent; of each latent, and of each "
        "gene's expression. Of models that were trained with sums, and of models trained so.",
        intervals_table(runs, KINDS),
        "**Held-out cells** of models that were trained with sums: how exact posteriors of latent "
        "depths differ from those of sums. Width: ratio of standard deviations of a latent; shift: "
        "distance of means, in standard deviations.",
        changes_table(runs),
        "**Gaps** from log p(x) down to MISELBO of models that were trained with latent depths, "
        "nats a cell: as the encoders leave them, and after steps of each cell's own.",
        gaps_table(runs),
    ]
    return joined(parts)


def changes_table(runs: Runs) -> str:
    """Width and shift of posteriors of real cells."""
    table = []
    for name, size in product(DATASETS, COMPONENTS):
        found = (pick(runs, f"{name}/inferred/S={size}", key) for key in CHANGES)
        table.append([name, size, *(cell(list(values.values()), 2) for values in found)])
    return markdown(["", "S", *CHANGES], table)


def gaps_table(runs: Runs) -> str:
    """Log p(x), and the gap by stage, of held-out and of training cells."""
    table = []
    for group, name, size in product(GROUPS, DATASETS, COMPONENTS):
        row: list[object] = [GROUPS[group], name, size]
        for key in ("log_likelihood", *(f"gap/{stage}" for stage in STEPS)):
            found = pick(runs, f"{name}/latent/S={size}", group, key)
            row.append(cell(list(found.values()), 1))
        table.append(row)
    return markdown(["", "", "S", "log p(x)", *(f"gap, {stage}" for stage in STEPS)], table)


def depths_figure(runs: Runs, path: Path) -> None:
    """What intervals of z hold once depths are latent."""
    calibration_figure(runs, path, KINDS)

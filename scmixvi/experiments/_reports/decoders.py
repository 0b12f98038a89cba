"""Decoders and posteriors apart: log p(x) by proposals of each cell's or image's own, and gaps."""

from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments import decoders, decoders_images, latents
from scmixvi.experiments._common import NOT_RUN, cell, markdown, paired
from scmixvi.experiments._reports.image_tables import note
from scmixvi.experiments._reports.tables import Runs, Values, errorbars, finish, joined, pick, seeds
from scmixvi.singlecell._queries.evidence import N_FINAL

DATASETS = ("cortex", "sc_mixology", "pbmc68k")
SINGLE, DEFAULT = "mixture/S=1", "default/S=1"


def rows_of(data: str) -> dict[str, tuple[str, str]]:
    """Label to job and the job that it is compared with."""
    found = {"S = 1": (SINGLE, SINGLE), "mixture, S = 4": ("mixture/S=4", SINGLE)}
    if data == "cortex":
        found["ensemble, S = 4"] = ("ensemble/S=4", SINGLE)
    if data in decoders.WITH_DEFAULTS:
        found["defaults, S = 1"] = (DEFAULT, DEFAULT)
        found["defaults, S = 4"] = ("default/S=4", DEFAULT)
    return {label: (f"{data}/{job}", f"{data}/{base}") for label, (job, base) in found.items()}


def difference_table(runs: Runs, group: str) -> str:
    """Log p(x) and the gap of one group of cells, and what they are minus those of S = 1."""
    rows = []
    for data in DATASETS:
        for label, (job, base) in rows_of(data).items():
            row = [data, label]
            for figure in ("log_p", "gap"):
                values = pick(runs, job, group, figure)
                found = paired(values, pick(runs, base, group, figure))
                row.append(cell(list(values.values())))
                row.append("" if job == base else cell(found, sign=True))
            rows.append(row)
    return markdown(["", "", "log p(x)", "minus S = 1", "gap", "minus S = 1"], rows)


def schemes_table(runs: Runs) -> str:
    """Log p(x) of one encoder's decoder as it is trained, minus that by the paper's scheme."""
    schemes = {"defaults": DEFAULT} | {
        f"{decoders.LONGER} epochs, batch norm {where!r}": f"longer, batch norm {where}"
        for where in decoders.BATCH_NORMS
    }
    rows = []
    for data in decoders.WITH_DEFAULTS:
        for label, scheme in schemes.items():
            row = [data, label]
            for group in ("test", "training"):
                jobs = (f"{data}/{scheme}", f"{data}/{SINGLE}")
                found = paired(*(pick(runs, job, group, "log_p") for job in jobs))
                row.append(cell(found, sign=True))
            rows.append(row)
    return markdown(["", "", "held-out cells", "training cells"], rows)


def eq17_table(runs: Runs) -> str:
    """Eq. 17 with as many draws of each component for every S."""
    rows = []
    for data in DATASETS:
        one, four = (
            pick(runs, f"{data}/mixture/S={size}/Eq. 17", "eq17") for size in decoders.COMPONENTS
        )
        levels = [cell(list(values.values())) for values in (one, four)]
        rows.append([data, *levels, cell(paired(four, one), sign=True)])
    return markdown(["", "S = 1", "S = 4", "minus S = 1"], rows)


def shortfall(runs: Runs, job: str) -> Values:
    """What own draws fall short of log p(x) by, test cells."""
    log_p, own = (pick(runs, job, "test", key) for key in ("log_p", "own_draws"))
    return {seed: log_p[seed] - own[seed] for seed in log_p}


def trust_table(runs: Runs) -> str:
    """How far the estimates are to be trusted."""
    rows = []
    for data in DATASETS:
        for label, (job, base) in rows_of(data).items():
            share, least, rising = (
                list(pick(runs, job, "test", key).values())
                for key in ("effective_share", "smallest_effective_share", "still_rising")
            )
            short = shortfall(runs, job)
            gained = cell(paired(short, shortfall(runs, base)), sign=True)
            row = [data, label, cell(list(short.values())), "" if job == base else gained]
            draws = [round(N_FINAL * of_worst) for of_worst in least]
            fewest = f"{min(draws)} to {max(draws)}" if draws else NOT_RUN
            rows.append([*row, cell(share), fewest, cell(rising, 3)])
    header = ["", "", "own draws fall short by", "minus S = 1"]
    return markdown([*header, "effective share", "draws of the worst cell", "still rising"], rows)


def decoders_tables(runs: Runs) -> str:
    """Levels and paired differences, and how far the estimates are to be trusted."""
    parts = [
        f"{seeds(runs)} Nats a cell, mean ± half the 95 % t-interval over seeds; differences are "
        "paired by seed. log p(x) of test cells is that of the decoder, by proposals adapted to "
        "each cell; the gap is log p(x) minus MISELBO. An ensemble has the decoder of S = 1, so "
        "that its difference in log p(x) shows the error of the estimate.",
        difference_table(runs, "test"),
        "**Cells that the model was trained on**, 81 of each run.",
        difference_table(runs, "training"),
        "**MixtureSCVI's defaults minus the paper's scheme**, S = 1, log p(x): batch norm, batches "
        "of 128, KL warm-up and scvi-tools' 400 epochs, or as many epochs as the paper's scheme "
        "takes at most, with batch norm and without.",
        schemes_table(runs),
        "**Eq. 17 of the paper**, test cells, 1000 draws of each component whatever S.",
        eq17_table(runs),
        "**How far to trust it.** What 1000 draws of a model's own encoders, pooled, fall short of "
        f"log p(x); of the adapted proposals, the effective share of {N_FINAL} draws, how many "
        "are effective in the worst cell of a run (over seeds, from to), and what ten times as "
        "many draws still add.",
        trust_table(runs),
    ]
    return joined(parts)


def decoders_figure(runs: Runs, path: Path) -> None:
    """What each model adds to one encoder's log p(x) and to its gap, test cells."""
    fig, axes = plt.subplots(1, len(DATASETS), figsize=(11, 3.2), sharey=True)
    for ax, data in zip(axes, DATASETS, strict=True):
        compared = {k: names for k, names in rows_of(data).items() if names[0] != names[1]}
        labels, rows = list(compared), list(compared.values())
        for shift, (key, title) in enumerate({"log_p": "log p(x)", "gap": "gap"}.items()):
            found = {}
            for i, (job, base) in enumerate(rows):
                gains = paired(*(pick(runs, name, "test", key) for name in (job, base)))
                found[i + 0.2 * shift - 0.1] = dict(enumerate(gains))
            errorbars(ax, found, title, linestyle="none")
        ax.axhline(0, color="0.7", linewidth=0.8)
        ax.set(title=data, xticks=range(len(labels)), xlim=(-0.5, len(labels) - 0.5))
        ax.set_xticklabels(labels, rotation=20, ha="right", fontsize=8)
    axes[0].set_ylabel("minus S = 1 (nats a cell)")
    finish(fig, axes, path)


IMAGE_ESTIMATES = {
    "nll": "own draws, Eq. 17",
    "nll_pooled": "own draws, one logarithm",
    "nll_refined": "refined, one logarithm",
}
"""Figure of a run, and how it is called."""


def image_decoders_tables(runs: Runs, smoke: bool) -> str:
    """NLL of images by each model's own draws and by refined posteriors, and beside S = 1."""
    jobs = {f"mixture, S = {s}": f"mnist/mixture/S={s}" for s in latents.COMPONENTS}
    size = decoders_images.ENSEMBLE_OF
    jobs[f"ensemble, S = {size}"] = f"mnist/ensemble/S={size}"
    one = {key: pick(runs, "mnist/mixture/S=1", key) for key in IMAGE_ESTIMATES}
    table = []
    for label, job in jobs.items():
        found = {key: pick(runs, job, key) for key in IMAGE_ESTIMATES}
        levels = [cell(list(values.values())) for values in found.values()]
        gains = [cell(paired(found[key], one[key]), sign=True) for key in IMAGE_ESTIMATES]
        beside = gains if job != "mnist/mixture/S=1" else [""] * len(gains)
        table.append([label, *levels, *beside])
    header = [*IMAGE_ESTIMATES.values(), *(f"{e}: over S = 1" for e in IMAGE_ESTIMATES.values())]
    parts = [
        "Test NLL in nats an image, mean ± half the 95 % t-interval over seeds; differences are "
        "paired by seed.",
        markdown(["MNIST", *header], table),
        note(runs, smoke),
    ]
    return joined(parts)

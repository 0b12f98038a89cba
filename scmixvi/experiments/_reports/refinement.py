"""Encoders before and after they learned from resampled cells."""

from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from scmixvi.experiments._common import cell, markdown, paired
from scmixvi.experiments._reports.decoders import DATASETS
from scmixvi.experiments._reports.tables import Runs, errorbars, finish, joined, pick, seeds
from scmixvi.experiments.decoders import COMPONENTS, WITH_DEFAULTS

# Models by the start of their jobs' names.
MODELS = {
    **{data: data for data in DATASETS},
    **{f"{data}/default": f"{data}, defaults" for data in WITH_DEFAULTS},
}
GROUPS = {"test": "held-out cells", "training": "training cells"}
STAGES = {"longer": "trained on", "refined": "refined"}
SCORES = ("svm", "svm_train_to_test", "ari", "nmi")


def refinement_tables(runs: Runs) -> str:
    """MISELBO and its gains, and the scores of the means on cortex."""
    gains, draws, scores = [], [], []
    labels = [*STAGES.values(), "refined minus trained on"]
    for model, label in MODELS.items():
        for size in COMPONENTS:
            start = f"{model}/before/S={size}"
            row, other = [label, size], [label, size]
            for group in GROUPS:
                before = pick(runs, start, group, "miselbo")
                row.append(cell(list(before.values())))
                after = [
                    pick(runs, f"{model}/{stage}/S={size}", group, "miselbo") for stage in STAGES
                ]
                row += [cell(paired(values, before), sign=True) for values in after]
                row.append(cell(paired(*reversed(after)), sign=True))
            for key in ("own_draws", "jsd"):
                before = pick(runs, start, "test", key)
                after = pick(runs, f"{model}/refined/S={size}", "test", key)
                other += [cell(list(before.values())), cell(paired(after, before), sign=True)]
            gains.append(row)
            draws.append(other)
    for model, size, (stage, label) in product(
        (model for model in MODELS if model.startswith("cortex")),
        COMPONENTS,
        {"before": "before", **STAGES}.items(),
    ):
        row = [MODELS[model], size, label]
        for score in SCORES:
            found = pick(runs, f"{model}/{stage}/S={size}", "scores", score)
            before = pick(runs, f"{model}/before/S={size}", "scores", score)
            compared = list(found.values()) if stage == "before" else paired(found, before)
            row.append(cell(compared, 3, sign=stage != "before"))
        scores.append(row)
        if stage == "refined":
            scores.append([MODELS[model], size, labels[-1], *_scores_ahead(runs, model, size)])
    columns = [c for g in GROUPS.values() for c in (f"MISELBO, {g}", *labels)]
    parts = [
        f"{seeds(runs)} Nats a cell, mean ± half the 95 % t-interval over seeds; what "
        "training adds is paired by seed. The decoder stays, and with it log p(x): what MISELBO "
        "gains, the gap loses.",
        markdown(["", "S", *columns], gains),
        "**Four components against one**, MISELBO of held-out cells.",
        components_table(runs),
        "**The other figures of held-out cells.** What 1000 draws of the encoders give for "
        "log p(x), and the components' JSD.",
        markdown(["", "S", "own draws", "refined", "JSD", "refined"], draws),
        "**Scores of the means, cortex, held-out cells.** As in Tables 6 and 9; below the first "
        "row of each S, what training adds.",
        markdown(["", "S", "", "SVM", "SVM, train to test", "ARI", "NMI"], scores),
    ]
    return joined(parts)


def _scores_ahead(runs: Runs, model: str, size: int) -> list[str]:
    """Scores of refined encoders minus those of encoders that were trained on."""
    stages = [f"{model}/{stage}/S={size}" for stage in ("refined", "longer")]
    found = [paired(*(pick(runs, job, "scores", name) for job in stages)) for name in SCORES]
    return [cell(values, 3, sign=True) for values in found]


def components_table(runs: Runs) -> str:
    """MISELBO of held-out cells: four components against one, and against one that is refined."""
    rows = []
    for model, label in MODELS.items():
        jobs = {stage: f"{model}/{stage}/S=" for stage in ("before", *STAGES)}
        pairs = [(f"{job}4", f"{job}1") for job in jobs.values()]
        pairs.append((jobs["refined"] + "1", jobs["before"] + "4"))
        found = [paired(*(pick(runs, job, "test", "miselbo") for job in pair)) for pair in pairs]
        rows.append([label, *(cell(values, sign=True) for values in found)])
    stages = ["before", *STAGES.values()]
    header = [*(f"S = 4 minus 1, {stage}" for stage in stages), "refined S = 1 minus S = 4 before"]
    return markdown(["", *header], rows)


def refinement_figure(runs: Runs, path: Path) -> None:
    """What further training of the encoders adds to MISELBO, with and without resampling."""
    fig, axes = plt.subplots(1, len(GROUPS), figsize=(9, 3.2), sharey=True)
    places = list(product(MODELS, COMPONENTS))
    for ax, (group, title) in zip(axes, GROUPS.items(), strict=True):
        for shift, (stage, label) in enumerate(STAGES.items()):
            found = {}
            for i, (model, size) in enumerate(places):
                names = [f"{model}/{s}/S={size}" for s in (stage, "before")]
                gains = paired(*(pick(runs, name, group, "miselbo") for name in names))
                found[i + 0.2 * shift - 0.1] = dict(enumerate(gains))
            errorbars(ax, found, label, linestyle="none")
        ax.axhline(0, color="0.7", linewidth=0.8)
        ax.set(title=title, xticks=range(len(places)), xlim=(-0.5, len(places) - 0.5))
        labels = [f"{MODELS[model]}, S = {size}" for model, size in places]
        ax.set_xticklabels(labels, rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel("MISELBO gained (nats a cell)")
    finish(fig, axes, path)

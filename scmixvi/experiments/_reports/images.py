"""Tables and figures of the image experiments, beside the paper's numbers.

Part of `python -m scmixvi.experiments.report`. A cell is the mean over seeds, and with several
seeds half the width of its 95 % interval; what has not been run reads "not run".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from scmixvi.experiments import big_iwae, latents, path_gradients
from scmixvi.experiments._common import NOT_RUN, by_seed, cell, markdown, paired
from scmixvi.experiments._reports.decoders import image_decoders_tables
from scmixvi.experiments._reports.image_nll import (
    figure_2,
    figure_3,
    image_nll_tables,
    paper_table_1,
    short_tables,
)
from scmixvi.experiments._reports.image_tables import note, row
from scmixvi.experiments._reports.inference_gap import image_gap_tables
from scmixvi.experiments._reports.paper_images import (
    NOT_SHOWN,
    TABLE_4,
    TABLE_5,
    TABLE_7,
    TABLE_7_ENCODER,
    TABLE_7_TOTAL,
    TABLE_8,
)
from scmixvi.experiments._reports.tables import Runs, pick
from scmixvi.records import read

DATA_LABELS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
LATENT_LABELS = {"vae": "VAE", "ensemble": "ensemble", "mixture": "mixture"}


# ---------------------------------------------------------------- latents


def latents_tables(runs: Runs, smoke: bool) -> str:
    """Accuracy as in Tables 4 and 8, at equal feature count, JSD as in Table 5, and NLL."""
    parts = []
    for dataset, paper, which in (("mnist", TABLE_4, "4"), ("fashion_mnist", TABLE_8, "8")):
        own = {name: run for name, run in runs.items() if name.startswith(f"{dataset}/")}
        label = DATA_LABELS[dataset]
        jsd = TABLE_5 if dataset == "mnist" else {}
        parts += [
            f"**{label}: accuracy of a linear SVM, % (Table {which})**\n",
            _latents_table(own, dataset, "accuracy", paper, scale=100, digits=2),
            f"**{label}: the same at {latents.N_COLUMNS} columns each, % (not in the paper)**\n",
            _latents_table(own, dataset, "accuracy_reduced", {}, scale=100, digits=2),
            f"**{label}: fitted on all training images, scored on all test images, %**\n",
            _latents_table(own, dataset, "accuracy_train_to_test", {}, scale=100, digits=2),
            f"**{label}: Jensen-Shannon divergence, nats{' (Table 5)' if jsd else ''}**\n",
            _latents_table(own, dataset, "jsd", jsd, digits=3),
            f"**{label}: test negative log-likelihood, nats (Eq. 17)**\n",
            _latents_table(own, dataset, "nll", {}, digits=2),
            f"**{label}: the same, all S L draws inside one logarithm, nats**\n",
            _latents_table(own, dataset, "nll_pooled", {}, digits=2),
            note(own, smoke),
        ]
    return "\n".join(parts)


def _latents_table(
    runs: Runs, dataset: str, key: str, paper: Mapping[str, Sequence[str]], **format: object
) -> str:
    rows, components = [], latents.COMPONENTS
    for name, label in LATENT_LABELS.items():
        if key in ("jsd", "nll", "nll_pooled") and name == "vae":
            continue
        rows.append([label, *row(runs, f"{dataset}/{name}/S={{s}}", components, key, **format)])
        if name in paper:
            rows.append([f"{label}, paper", *paper[name]])
    if key == "jsd":
        rows.append(["log S", *(f"{np.log(s):.3f}" for s in components)])
    gains = [_gain(runs, dataset, s, key, **format) for s in components]
    rows.append(["mixture minus ensemble", *gains])
    return markdown(["", *(f"S = {s}" for s in components)], rows)


def _gain(runs: Runs, dataset: str, s: int, key: str, **format: object) -> str:
    if s == 1:
        return NOT_SHOWN
    both = [pick(runs, f"{dataset}/{name}/S={s}", key) for name in ("mixture", "ensemble")]
    return cell(paired(*both), sign=True, **format)


# ---------------------------------------------------------------- path gradients


def path_gradients_tables(runs: Runs, smoke: bool) -> str:
    """Test log-likelihood and validation bound by either gradient, and their paired difference."""
    known = sorted({int(name.split("S=")[1].split("/")[0]) for name in runs}) or [1, 2, 4]
    rows = []
    for key, label in (
        ("nll_pooled", "NLL, all S L draws inside one logarithm"),
        ("nll", "NLL by Eq. 17"),
        ("val_bound", "best MISELBO on validation images"),
    ):
        found = {
            gradient: [_trained_figure(runs, f"mnist/S={s}/{gradient}", key) for s in known]
            for gradient in path_gradients.GRADIENTS
        }
        for gradient, by_size in found.items():
            cells = [cell(list(v.values()), digits=2) for v in by_size]
            rows.append([f"{label}: {gradient} gradient", *cells])
        pairs = zip(found["path"], found["whole"], strict=True)
        gains = [cell(paired(*both), digits=2, sign=True) for both in pairs]
        rows.append([f"{label}: path minus whole", *gains])
    return "\n".join([markdown(["MNIST", *(f"S = {s}" for s in known)], rows), note(runs, smoke)])


def _trained_figure(runs: Runs, name: str, key: str) -> dict[int, float]:
    """Seed to a figure of the test, or of the training it came from."""
    found = by_seed(runs, name).items()
    return {seed: run.get(key, run["trainings"][0].get(key)) for seed, run in found}


# ---------------------------------------------------------------- big IWAE


def big_iwae_tables(runs: Runs, smoke: bool) -> str:
    """NLL and parameter counts as in Table 7; at S = 1 the three are one model."""
    labels = {"mixture": "mixture", "iwae_layers": "IWAE, layers", "iwae_units": "IWAE, units"}
    rows = []
    for name, label in labels.items():
        names = [f"mnist/{'mixture' if s == 1 else name}/S={s}" for s in big_iwae.COMPONENTS]
        nll = [cell(list(pick(runs, n, "nll").values())) for n in names]
        pooled = [cell(list(pick(runs, n, "nll_pooled").values())) for n in names]
        hidden = [_only(runs, n, "encoder_hidden") for n in names]
        encoder = [_only(runs, n, "n_encoder_weights") for n in names]
        total = [_only(runs, n, "n_parameters_of_table_7") for n in names]
        rows += [
            [f"{label}: NLL, nats", *nll],
            [f"{label}: NLL, paper", *TABLE_7[name]],
            [f"{label}: NLL, all S L draws inside one logarithm", *pooled],
            [f"{label}: hidden layers", *map(_layers, hidden)],
            [f"{label}: encoder weights", *map(_thousands, encoder)],
            [f"{label}: encoder weights, paper", *map(_thousands, TABLE_7_ENCODER[name])],
            [f"{label}: parameters in total", *map(_thousands, total)],
            [f"{label}: parameters in total, paper", *map(_thousands, TABLE_7_TOTAL[name])],
        ]
    header = ["", *(f"S = {s}" for s in big_iwae.COMPONENTS)]
    return "\n".join(["**MNIST (Table 7)**\n", markdown(header, rows), note(runs, smoke)])


def _only(runs: Runs, name: str, key: str) -> object:
    """A figure that is the same for all seeds."""
    return next((run[key] for run in by_seed(runs, name).values()), NOT_RUN)


def _layers(hidden: object) -> str:
    if not isinstance(hidden, list):
        return str(hidden)
    return f"{len(hidden)} of {hidden[0]}"


def _thousands(n: object) -> str:
    return f"{n:,}" if isinstance(n, int) else str(n)


TABLES: dict[str, Callable[[Runs, bool], str]] = {
    "latents": latents_tables,
    "path_gradients": path_gradients_tables,
    "big_iwae": big_iwae_tables,
    "inference_gap_images": image_gap_tables,
    "decoders_images": image_decoders_tables,
    "image_nll": image_nll_tables,
    "image_nll_short": short_tables,
}
FIGURES: dict[str, tuple[str, Callable[[Runs, Path], None]]] = {
    "image_nll_by_recipe": ("image_nll", figure_2),
    "image_nll_vanilla": ("image_nll", figure_3),
}


def write(results: Path, output: Path) -> None:
    """Write `NAME.md` and `NAME.png` of every table and figure from the JSON in a folder."""
    contents = {name: read(results / f"{name}.json", {"runs": {}}) for name in TABLES}
    for name, table in TABLES.items():
        text = table(contents[name]["runs"], contents[name].get("smoke", False))
        (output / f"{name}.md").write_text(text)
        print(text)
    (output / "paper_table_1.md").write_text(paper_table_1())
    for name, (source, draw) in FIGURES.items():
        draw(contents[source]["runs"], output / f"{name}.png")

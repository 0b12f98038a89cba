"""Tables and figures of the image experiments, beside the paper's numbers.

Part of `python -m scmixvi.experiments.report`. A cell is the mean over seeds, and with several
seeds half the width of its 95 % interval; what has not been run reads "not run".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from scmixvi.experiments import big_iwae, image_nll, latents, path_gradients
from scmixvi.experiments._common import NOT_RUN, by_seed, cell, markdown, paired
from scmixvi.experiments._image_training import Scheme
from scmixvi.experiments._paper_images import (
    NOT_SHOWN,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
    TABLE_7,
    TABLE_7_ENCODER,
    TABLE_7_TOTAL,
    TABLE_8,
    VANILLA_10,
)
from scmixvi.records import read

Runs = Mapping[str, dict]

DATA_LABELS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
LATENT_LABELS = {"vae": "VAE", "ensemble": "ensemble", "mixture": "mixture"}
RECIPE_LABELS = {
    "vanilla": "vanilla",
    "hierarchical": "hierarchical",
    "iaf": "IAF",
    "vamp": "VampPrior",
    "composite": "composite",
}


def values(runs: Runs, name: str, key: str) -> dict[int, float]:
    """Seed to one figure of one model."""
    return {seed: run[key] for seed, run in by_seed(runs, name).items()}


def row(runs: Runs, pattern: str, components: Sequence[int], key: str, **format: object) -> list:
    """Cells over S of the models named by a pattern with `{s}`."""
    found = [values(runs, pattern.format(s=s), key) for s in components]
    return [cell(list(f.values()), **format) for f in found]


def note(runs: Runs, smoke: bool, paper: Scheme | None = None) -> str:
    """How the models of these runs were trained, as the JSON says, and where that is less."""
    if not runs:
        return f"Nothing was trained yet: {NOT_RUN}.\n"
    seeds = sorted({int(name.rpartition("=")[2]) for name in runs})
    lines = ["A smoke run: the figures mean nothing."] if smoke else []
    lines.append(f"Seed(s): {', '.join(map(str, seeds))}.")
    trainings = _trainings(runs)
    paper = paper or Scheme()
    for scheme in {tuple(t["scheme"].items()): t["scheme"] for t in trainings}.values():
        lines.append(_scheme_note(scheme, [t for t in trainings if t["scheme"] == scheme], paper))
    samples = sorted({run["n_test_samples"] for run in runs.values()})
    lines.append(f"L = {' and '.join(map(str, samples))} in the test.")
    return " ".join(lines) + "\n"


def _trainings(runs: Runs) -> list[dict]:
    """Every training once; several runs may rest on one."""
    once = {}
    for name, run in runs.items():
        parts = name.split("/")
        once |= {(parts[0], parts[-1], t["name"]): t for t in run["trainings"]}
    return list(once.values())


def _scheme_note(scheme: dict, trainings: list[dict], paper: Scheme) -> str:
    epochs = sorted(t["epochs"] for t in trainings)
    trained = f"{epochs[0]} to {epochs[-1]}" if epochs[0] < epochs[-1] else f"{epochs[0]}"
    text = (
        f"{len(trainings)} training(s) of {trained} epochs (at most {scheme['epochs']}, KL warm-up "
        f"{scheme['warmup_epochs']}, learning rate {scheme['learning_rate']:g})"
    )
    if scheme["epochs"] < paper.epochs:
        unfinished = sum(not t["stopped_early"] for t in trainings)
        return (
            f"**Fewer epochs than the paper's** (at most {paper.epochs}, warm-up "
            f"{paper.warmup_epochs}): {text}; {unfinished} ended before early stopping."
        )
    return text + "."


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
            f"**{label}: the same, all draws inside one logarithm, nats**\n",
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
    both = [values(runs, f"{dataset}/{name}/S={s}", key) for name in ("mixture", "ensemble")]
    return cell(paired(*both), sign=True, **format)


# ---------------------------------------------------------------- path gradients


def path_gradients_tables(runs: Runs, smoke: bool) -> str:
    """Test log-likelihood and validation bound by either gradient, and their paired difference."""
    known = sorted({int(name.split("S=")[1].split("/")[0]) for name in runs}) or [1, 2, 4]
    rows = []
    for key, label in (
        ("nll_pooled", "NLL, all draws inside one logarithm"),
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
        nll = [cell(list(values(runs, n, "nll").values())) for n in names]
        pooled = [cell(list(values(runs, n, "nll_pooled").values())) for n in names]
        hidden = [_only(runs, n, "encoder_hidden") for n in names]
        encoder = [_only(runs, n, "n_encoder_weights") for n in names]
        total = [_only(runs, n, "n_parameters_of_table_7") for n in names]
        rows += [
            [f"{label}: NLL, nats", *nll],
            [f"{label}: NLL, paper", *TABLE_7[name]],
            [f"{label}: NLL, all draws inside one logarithm", *pooled],
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


# ---------------------------------------------------------------- image models


def image_nll_tables(runs: Runs, smoke: bool) -> str:
    """Tables 1, 2 and 3."""
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
            note(mnist, smoke),
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
            markdown(["", "paper", "here"], _table_3(mnist)),
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
        rows.append([label, *row(runs, pattern, range(1, 5), "nll")])
        if recipe in paper:
            rows.append([f"{label}, paper", *paper[recipe]])
        rows.append([f"{label}, one logarithm", *row(runs, pattern, range(1, 5), "nll_pooled")])
    return rows


def _subset_note(runs: Runs) -> str:
    if not any(run["data"].endswith("_subset") for run in runs.values()):
        return ""
    return (
        "Trained and tested on a subset of CIFAR-10 (12,000 and 3,000 images): **not comparable "
        "with the paper's or any published figure.** "
    )


def _table_3(runs: Runs) -> list[list[str]]:
    rows = [[name, nll, NOT_SHOWN] for name, nll in TABLE_3]
    ours = (
        ("hierarchical with VampPrior, S = 1", "as above", "hierarchical_vamp/S=1"),
        ("vanilla, S = 10", f"{VANILLA_10}", "vanilla/S=10"),
        ("composite, S = 4", _TABLE_1_TEXT["composite"][3], "composite/S=4"),
    )
    for label, paper, name in ours:
        rows.append([label, paper, cell(list(values(runs, f"mnist/{name}", "nll").values()))])
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
    found = {s: list(values(runs, f"mnist/{recipe}/S={s}", "nll").values()) for s in components}
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


TABLES: dict[str, Callable[[Runs, bool], str]] = {
    "latents": latents_tables,
    "path_gradients": path_gradients_tables,
    "big_iwae": big_iwae_tables,
    "image_nll": image_nll_tables,
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
    for name, (source, draw) in FIGURES.items():
        draw(contents[source]["runs"], output / f"{name}.png")

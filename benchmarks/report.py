"""Tables of the readme and the documentation from the JSON of the benchmarks.

    python -m benchmarks.report        # rewrites benchmarks/results/*.md and the readme's tables

A block of the readme between `<!-- NAME -->` and `<!-- end -->` is replaced by the table NAME.
"""

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import RESULTS
from scmixvi.experiments import _common
from scmixvi.experiments._common import markdown
from scmixvi.experiments._tables import load, pick
from scmixvi.records import read

README = Path(__file__).parents[1] / "README.md"
DATASETS = ("cortex", "sc_mixology", "pbmc68k")
SEEDS = (0, 1, 2)
SCORES = {
    "ari_kmeans": "ARI, k-means",
    "nmi_kmeans": "NMI, k-means",
    "ari_leiden": "ARI, Leiden",
    "nmi_leiden": "NMI, Leiden",
    "knn_accuracy": "kNN accuracy",
    "silhouette_label": "silhouette, label",
    "silhouette_batch": "silhouette, batch",
}
ONE_COMPONENT, GAINS = "trunk, s2s from 1, S = 1", ("miselbo", "log_likelihood")
QUERIES = {
    "latent": "latents of all cells",
    "normalized_expression": "expression of 1000 cells",
    "marginal_ll": "log p(x) of 128 cells, 1000 draws",
}


def _runs() -> dict:
    return read(RESULTS / "representation.json", {"runs": {}})["runs"]


def representation_scores() -> str:
    """Scores of the three representations at S = 4, and paired differences from the mean."""
    runs = _runs()
    found: dict[tuple[str, str], list[float]] = {}
    for name, run in runs.items():
        if "/S=4/" in name and "bn=encoder" not in name:
            for representation, scores in run["scores"].items():
                for score, value in scores.items():
                    found.setdefault((representation, score), []).append(value)
    rows = []
    for score, label in SCORES.items():
        mean = np.array(found["mean", score])
        row = [label, f"{mean.mean():.3f}"]
        for other in ("components", "params"):
            difference = np.array(found[other, score]) - mean
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            row.append(f"{difference.mean():+.4f} ± {error:.4f}")
        rows.append([*row, len(mean)])
    header = ("score", '"mean"', '"components" minus "mean"', '"params" minus "mean"', "runs")
    return markdown(header, rows)


def batch_norm_bounds() -> str:
    """Held-out bounds for every data set, S and use_batch_norm: mean and range over seeds."""
    runs, rows = _runs(), []
    for data in DATASETS:
        for n_components in (1, 4):
            for batch_norm in ("both", "encoder", "none"):
                group = [runs[f"{data}/bn={batch_norm}/S={n_components}/seed={s}"] for s in SEEDS]
                figures = [
                    _mean_and_range([run[key] for run in group])
                    for key in ("miselbo", "log_likelihood")
                ]
                jsd = statistics.fmean(run["jsd"] for run in group)
                rows.append([data, n_components, batch_norm, *figures, f"{jsd:.2f}"])
    return markdown(("data", "S", "use_batch_norm", "MISELBO", "log p(x)", "JSD"), rows)


def gains_of(data: str, batch_norm: str, key: str) -> list[float]:
    """What four components gain over one on one data set, seed by seed, in nats a cell."""
    runs = _runs()
    one, four = (
        [runs[f"{data}/bn={batch_norm}/S={n}/seed={s}"][key] for s in SEEDS] for n in (1, 4)
    )
    return [b - a for a, b in zip(one, four, strict=True)]


def gains() -> str:
    """What four components gain over one, seed by seed, in nats a held-out cell."""
    rows = []
    for data in DATASETS:
        for batch_norm in ("both", "encoder", "none"):
            figures = [gains_of(data, batch_norm, key) for key in ("miselbo", "log_likelihood")]
            shown = [", ".join(f"{gain:+.1f}" for gain in found) for found in figures]
            rows.append([data, batch_norm, *shown])
    return markdown(("data", "use_batch_norm", "MISELBO", "log p(x)"), rows)


def gaps() -> str:
    """What the bound leaves to log p(x), for one component and four, seed by seed, in nats."""
    runs, rows = _runs(), []
    for data in DATASETS:
        for batch_norm in ("both", "encoder", "none"):
            row = [data, batch_norm]
            for n in (1, 4):
                group = [runs[f"{data}/bn={batch_norm}/S={n}/seed={s}"] for s in SEEDS]
                found = [run["log_likelihood"] - run["miselbo"] for run in group]
                row.append(", ".join(f"{gap:.1f}" for gap in found))
            rows.append(row)
    return markdown(("data", "use_batch_norm", "gap, S = 1", "gap, S = 4"), rows)


def scores_of_four() -> str:
    """Scores of the mean representation: one component, and what four add, paired by run."""
    runs, rows = _runs(), []
    pairs = [
        (run["scores"]["mean"], runs[name.replace("/S=1/", "/S=4/")]["scores"]["mean"])
        for name, run in runs.items()
        if "/S=1/" in name
    ]
    for score, label in SCORES.items():
        found = [(one[score], four[score]) for one, four in pairs if score in one]
        one, four = np.array(found).T
        error = (four - one).std(ddof=1) / np.sqrt(len(one))
        difference = f"{(four - one).mean():+.4f} ± {error:.4f}"
        rows.append([label, f"{one.mean():.3f}", difference, len(one)])
    return markdown(("score", "S = 1", "S = 4 minus S = 1", "runs"), rows)


def demo() -> str:
    """The demo's table: pbmc68k, one seed."""
    rows = []
    for name, row in read(RESULTS / "demo.json", {"models": {}})["models"].items():
        rows.append(
            [
                name,
                f"{statistics.fmean(row['bound']):.2f}",
                f"{statistics.fmean(row['log p(x)']):.2f}",
                f"{row['ARI']:.2f}",
                f"{row['NMI']:.2f}",
                f"{row['JSD']:.2f}" if "JSD" in row else "",
            ]
        )
    return markdown(("model", "MISELBO", "log p(x)", "ARI", "NMI", "JSD"), rows)


def _shown(model: str) -> str:
    return "scvi.model.SCVI" if model == "SCVI" else f"MixtureSCVI, {model}"


def _with_quartiles(found: dict[str, float], digits: int = 2) -> str:
    median, low, high = (f"{found[key]:.{digits}f}" for key in ("median", "q25", "q75"))
    return f"{median} ({low} to {high})"


def _scaled(measured: dict) -> str:
    steps = measured["max_steps_an_epoch"]
    return f", scaled up from {steps:,} steps" if steps else ""


def epochs() -> str:
    """Seconds an epoch beside scvi.model.SCVI's, for every data set and machine measured."""
    rows = []
    for name, measured in read(RESULTS / "singlecell.json", {}).items():
        for row in measured.get("training", []):
            ratio = row["ratio_to_SCVI"]
            floor = measured.get("floor", {}).get(row["model"], {})
            peak = measured.get("memory", {}).get(row["model"], {})
            rows.append(
                [
                    name + _scaled(measured),
                    _shown(row["model"]),
                    f"{row['seconds_an_epoch']['median']:.2f}",
                    _with_quartiles(ratio),
                    f"{floor['products'] + floor['bytes']:.2f}" if floor else "",
                    f"{peak['resident_mb']:.0f}" if peak else "",
                ]
            )
    header = ("data and machine", "model", "seconds an epoch", "ratio", "floor, s", "peak, MB")
    return markdown(header, rows)


def epoch_ratios() -> str:
    """Seconds an epoch over scvi.model.SCVI's: one row for data and machine, one column for S."""
    rows = []
    for name, measured in read(RESULTS / "singlecell.json", {}).items():
        by_model = {row["model"]: row for row in measured.get("training", [])}
        if not by_model:
            continue
        ratios = [by_model.get(f"S = {n}", {}).get("ratio_to_SCVI") for n in (1, 2, 4, 8)]
        seconds = by_model["SCVI"]["seconds_an_epoch"]["median"]
        cells = [f"{ratio['median']:.2f}" if ratio else "" for ratio in ratios]
        rows.append([name + _scaled(measured), f"{seconds:.2f}", *cells])
    return markdown(("data and machine", "SCVI, s", "S = 1", "S = 2", "S = 4", "S = 8"), rows)


def queries() -> str:
    """Seconds of what users ask a trained model for, beside scvi.model.SCVI's."""
    rows = []
    for name, measured in read(RESULTS / "singlecell.json", {}).items():
        for query, taken in measured.get("inference", {}).items():
            for model, seconds in taken["seconds"].items():
                ratio = taken["ratio_to_SCVI"][model]
                rows.append(
                    [
                        name,
                        QUERIES[query],
                        _shown(model),
                        f"{seconds['median']:.2f}",
                        _with_quartiles(ratio),
                    ]
                )
    return markdown(("data and machine", "query", "model", "seconds", "ratio"), rows)


def epoch_parts() -> str:
    """Cells a second, and per cent of a training run's seconds by what they go to."""
    rows, parts = [], None
    for name, measured in read(RESULTS / "singlecell.json", {}).items():
        for row in measured.get("training", []):
            parts = parts or list(row["shares"])
            shares = [f"{100 * row['shares'][part]:.0f}" for part in parts]
            rows.append([name, _shown(row["model"]), f"{row['cells_a_second']:,}", *shares])
    return markdown(("data and machine", "model", "cells a second", *(parts or [])), rows)


def over_one(bounds: dict, name: str, key: str) -> list[float]:
    """What a model adds to a shared encoder with one component, paired by seed, in nats."""
    both = [{s: run[key] for s, run in bounds.get(n, {}).items()} for n in (name, ONE_COMPONENT)]
    return _common.paired(*both)


def many_components() -> str:
    """A step and the held-out bounds of few and many components, for both families."""
    found, rows = read(RESULTS / "many_components.json", {}), []
    for data, measured in found.get("times", {}).items():
        bounds = found.get("bounds", {}).get(data, {})
        for name, row in measured["models"].items():
            runs = bounds.get(name, {})
            means = {
                key: statistics.mean(run[key] for run in runs.values()) if runs else math.nan
                for key in ("miselbo", "log_likelihood", "seconds")
            }
            gains = [_common.cell(over_one(bounds, name, key), 1, sign=True) for key in GAINS]
            scores = [
                f"{means['miselbo']:.1f}",
                gains[0],
                f"{means['log_likelihood']:.1f}",
                gains[1],
                f"{means['seconds']:.0f}",
                str(len(runs)),
            ]
            rows.append(
                [
                    data,
                    name,
                    f"{row['milliseconds']['median']:.0f}",
                    f"{row['ratio']['median']:.2f}",
                    *(scores if runs else [""] * len(scores)),
                ]
            )
    scores = ("MISELBO", "over S = 1", "log p(x)", "over S = 1", "training, s", "seeds")
    return markdown(("data", "model", "ms a step", "ratio", *scores), rows)


def same_bounds() -> str:
    """What training in other ways adds to held-out bounds, paired by seed, in nats a cell."""
    runs, rows = load(RESULTS, "same_bounds.json"), []
    for label, first, second in (
        ("fast minus plain", "fast", "plain"),
        ("bf16 products minus float32", "bf16", "fast"),
    ):
        for data in DATASETS:
            for n in (1, 4):
                figures = []
                for key in ("miselbo", "log_likelihood"):
                    both = [pick(runs, f"{data}/S={n}/{path}", key) for path in (first, second)]
                    figures.append(_common.cell(_common.paired(*both), sign=True))
                rows.append([label, data, n, *figures, len(both[0])])
    return markdown(("training", "data", "S", "MISELBO", "log p(x)", "seeds"), rows)


def likelihoods() -> str:
    """Milliseconds of the count likelihoods with gradients, scvi-tools' and ours."""
    rows = []
    for row in read(RESULTS / "likelihoods.json", {"rows": []})["rows"]:
        ratio, milliseconds = row["ratio"], row["milliseconds"]
        rows.append(
            [
                row["family"],
                row["counts"],
                row["K"],
                row["threads"],
                *(f"{milliseconds[name]['median']:.0f}" for name in ("scvi-tools", "scmixvi")),
                _with_quartiles(ratio),
            ]
        )
    header = ("likelihood", "counts", "draws", "threads", "scvi-tools, ms", "scmixvi, ms", "ratio")
    return markdown(header, rows)


def image_steps() -> str:
    """Seconds of a training step of the image models on a CPU, and how they grow with S."""
    measured = read(RESULTS / "image_cpu.json", {"cells": []})
    rows = []
    for cell in measured["cells"]:
        growth = measured["growth_in_S"][_setting(cell)][str(cell["n_components"])]
        rows.append(
            [
                cell["recipe"],
                cell["sizes"],
                cell["n_components"],
                f"{cell['n_parameters'] / 1e6:.2f}",
                f"{cell['seconds_per_step']:.3g}",
                f"{cell['cpu_seconds_per_step']:.3g}",
                f"{growth:.2f}",
                f"{cell['floor_seconds']:.2g}",
                f"{cell['peak_bytes'] / 2**20:.0f}",
            ]
        )
    header = (
        *("recipe", "sizes", "S", "million weights", "s a step, clock", "s a step, processor"),
        *("processor, over S = 1", "floor, s", "peak, MiB"),
    )
    return markdown(header, rows)


def _setting(cell: dict) -> str:
    return " ".join(cell[key] for key in ("recipe", "sizes", "precision", "mode"))


def mlp_mnist() -> str:
    """The test log-likelihood of the one image model trained so far."""
    run = read(RESULTS / "mlp_mnist.json", {})
    seconds = run["fit_seconds"], run["test_seconds"]
    rows = [
        ["recipe, S, seed", f"{run['recipe']}, {run['n_components']}, {run['seed']}"],
        ["epochs", run["epochs"]],
        ["-log p(x), nats", f"{run['test_nll_nats']:.2f} ± {run['test_nll_standard_error']:.2f}"],
        ["test images, samples an image", f"{run['n_test_images']}, {run['n_test_samples']}"],
        ["minutes to train and to test", ", ".join(f"{s['clock'] / 60:.0f}" for s in seconds)],
        ["of one processor", ", ".join(f"{s['processors'] / 60:.0f}" for s in seconds)],
    ]
    return markdown(("", "MNIST"), rows)


MODEL_NAMES = {"SCVI": "scvi.model.SCVI", "mixture": "MixtureSCVI, S = 4"}
SOURCE_NAMES = {"memory": "CSR in memory", "files": "h5ad on disk", "annbatch": "annbatch (zarr)"}


def scale() -> str:
    """Cost a cell and peak memory for every source and number of cells."""
    rows = []
    for row in read(RESULTS / "scale.json", {}).values():
        held, peak = row["held_before_training_mb"], row["training_peak_mb"]
        rows.append(
            [
                SOURCE_NAMES[row["source"]],
                f"{row['n_cells']:,}",
                MODEL_NAMES[row["model"]],
                f"{row['steps']:,.0f}" + ("" if row["whole_epochs"] else ", part of an epoch"),
                f"{row['clock_us']:.0f}",
                f"{row['processor_us']:.0f}",
                f"{held / 1000:.2f}",
                f"{peak / 1000:.2f}",
            ]
        )
    header = ("counts", "cells", "model", "steps", "μs a cell", "of CPU", "data, GB", "peak, GB")
    return markdown(header, rows)


QUERY_NAMES = {
    "marginal_ll": "get_marginal_ll, 1000 samples",
    "refined": "latents, 100 refinement steps",
    "latents": "latents",
}


def inference() -> str:
    """Queries of a trained model beside scvi.model.SCVI's: medians of rounds."""
    content, rows = read(RESULTS / "inference.json", {}), []
    for query, label in QUERY_NAMES.items():
        measured = content.get(query, {"seconds": {}})
        for name, taken in measured["seconds"].items():
            ratio = measured["SCVI_over_mixture"][name]["processor"]
            rows.append(
                [
                    f"{label}, {measured['cells']:,} cells",
                    name.replace("SCVI", "scvi.model.SCVI").replace("S = ", "MixtureSCVI, S = "),
                    f"{taken['clock']['median']:.1f}",
                    f"{taken['processor']['median']:.1f}",
                    _with_quartiles(ratio, 1),
                ]
            )
    header = ("query", "model", "seconds", "of CPU", "CPU time over MixtureSCVI's")
    return markdown(header, rows)


def importance() -> str:
    """Importance-weighted expression: seconds and memory above what the data hold."""
    measured = read(RESULTS / "inference.json", {}).get("importance", {"rows": []})
    rows = [
        [
            row["model"].replace("SCVI", "scvi.model.SCVI").replace("S = 4", "MixtureSCVI, S = 4"),
            f"{row['cells']:,}",
            f"{row['anchors']:,}",
            f"{row['seconds']:.0f}",
            f"{row['processor_seconds']:.0f}",
            f"{row['peak_above_mb'] / 1000:.2f}",
        ]
        for row in measured["rows"]
    ]
    return markdown(("model", "cells", "anchors", "seconds", "of CPU", "peak, GB"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "representation_scores": representation_scores,
    "batch_norm_bounds": batch_norm_bounds,
    "gains": gains,
    "gaps": gaps,
    "scores_of_four": scores_of_four,
    "demo": demo,
    "epochs": epochs,
    "epoch_ratios": epoch_ratios,
    "epoch_parts": epoch_parts,
    "queries": queries,
    "many_components": many_components,
    "same_bounds": same_bounds,
    "likelihoods": likelihoods,
    "image_steps": image_steps,
    "mlp_mnist": mlp_mnist,
    "scale": scale,
    "inference": inference,
    "importance": importance,
}


def with_tables(text: str) -> str:
    """The readme with its tables as the JSON has them."""

    def block(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]]()}<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def _mean_and_range(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Write every table."""
    for name, table in TABLES.items():
        (RESULTS / f"{name}.md").write_text(table())
    README.write_text(with_tables(README.read_text()))


if __name__ == "__main__":
    main()

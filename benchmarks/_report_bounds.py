"""Tables of what the benchmarks found of bounds and scores."""

import math
import statistics

import numpy as np

from benchmarks import RESULTS
from benchmarks.refinement_steps import STEPS
from scmixvi.experiments import _common
from scmixvi.experiments._common import markdown
from scmixvi.experiments._reports.tables import load, pick
from scmixvi.records import read

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


def refinement_steps() -> str:
    """Gaps of held-out cells after steps of their own posteriors: today's, in brackets before."""
    runs, rows = load(RESULTS, "refinement_steps.json"), []
    for data in DATASETS:
        for n in (1, 4):
            name = f"{data}/S={n}"
            encoders = list(pick(runs, name, "encoders").values())
            row = [data, n, f"{statistics.fmean(encoders):.1f}"]
            for n_steps in STEPS:
                now, before = (
                    statistics.fmean(pick(runs, name, f"{kind}/{n_steps} steps").values())
                    for kind in ("now", "before")
                )
                row.append(f"{now:.2f} ({before:.2f})")
            rows.append([*row, len(encoders)])
    steps = [f"{n_steps} steps" for n_steps in STEPS]
    return markdown(("data", "S", "encoders", *steps, "seeds"), rows)


def _mean_and_range(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})"

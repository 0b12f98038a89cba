"""Tables of the readme and the documentation from the JSON of the benchmarks.

    python -m benchmarks.report        # rewrites benchmarks/results/*.md and the readme's tables

A block of the readme between `<!-- NAME -->` and `<!-- end -->` is replaced by the table NAME.
"""

import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import RESULTS
from scmixvi.experiments.report import markdown
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


def gains() -> str:
    """What four components gain over one, seed by seed, in nats a held-out cell."""
    runs, rows = _runs(), []
    for data in DATASETS:
        for batch_norm in ("both", "encoder", "none"):
            row = [data, batch_norm]
            for key in ("miselbo", "log_likelihood"):
                one, four = (
                    [runs[f"{data}/bn={batch_norm}/S={n}/seed={s}"][key] for s in SEEDS]
                    for n in (1, 4)
                )
                row.append(", ".join(f"{b - a:+.1f}" for a, b in zip(one, four, strict=True)))
            rows.append(row)
    return markdown(("data", "use_batch_norm", "MISELBO", "log p(x)"), rows)


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


def epochs() -> str:
    """Seconds an epoch beside scvi.model.SCVI's, for every data set and machine measured."""
    rows = []
    for name, measured in read(RESULTS / "singlecell.json", {}).items():
        for row in measured["training"]:
            ratio, floor = row["ratio_to_SCVI"], row["floor_seconds_an_epoch"]
            rows.append(
                [
                    name,
                    "scvi.model.SCVI" if row["model"] == "SCVI" else f"MixtureSCVI, {row['model']}",
                    f"{row['seconds_an_epoch']['median']:.2f}",
                    f"{ratio['median']:.2f} ({ratio['q25']:.2f} to {ratio['q75']:.2f})",
                    f"{floor['products'] + floor['bytes']:.2f}",
                ]
            )
    return markdown(("data and machine", "model", "seconds an epoch", "ratio", "floor, s"), rows)


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


QUERY_NAMES = {"marginal_ll": "get_marginal_ll, 1000 samples", "latents": "latents"}


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
                    name.replace("SCVI", "scvi.model.SCVI").replace("S = 4", "MixtureSCVI, S = 4"),
                    f"{taken['clock']['median']:.1f}",
                    f"{taken['processor']['median']:.1f}",
                    f"{ratio['median']:.1f} ({ratio['q25']:.1f} to {ratio['q75']:.1f})",
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
    "demo": demo,
    "epochs": epochs,
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

"""Tables of what the benchmarks found of seconds and memory."""

from benchmarks import RESULTS
from scmixvi.experiments._common import markdown
from scmixvi.records import read

QUERIES = {
    "latent": "latents of all cells",
    "normalized_expression": "expression of 1000 cells",
    "marginal_ll": "log p(x) of 128 cells, 1000 draws",
}


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
            if not row["shares"]:  # a compiled step has no parts
                continue
            parts = parts or list(row["shares"])
            shares = [f"{100 * row['shares'][part]:.0f}" for part in parts]
            rows.append([name, _shown(row["model"]), f"{row['cells_a_second']:,}", *shares])
    return markdown(("data and machine", "model", "cells a second", *(parts or [])), rows)


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


def products() -> str:
    """Milliseconds of a step's wide products, torch's own and by oneDNN."""
    rows = [
        [
            row["product"],
            row["n_components"],
            " x ".join(map(str, row["shape"])),
            *_of_two_libraries(row),
        ]
        for row in read(RESULTS / "products.json", {"rows": []})["rows"]
    ]
    return markdown(("product", "S", "shape", *_TWO_LIBRARIES), rows)


def image_mlp_products() -> str:
    """Milliseconds of the image MLP's steps and tests, by torch's own products and by oneDNN's."""
    rows = [
        [row["call"], row["n_components"], *_of_two_libraries(row)]
        for row in read(RESULTS / "products.json", {"image_mlp": []})["image_mlp"]
    ]
    return markdown(("image MLP", "S", *_TWO_LIBRARIES), rows)


_TWO_LIBRARIES = ("threads", "torch, ms", "oneDNN, ms", "ratio")


def _of_two_libraries(row: dict) -> list:
    milliseconds = (row["milliseconds"][name]["median"] for name in ("torch", "oneDNN"))
    return [row["threads"], *(f"{m:.2f}" for m in milliseconds), _with_quartiles(row["ratio"])]


def memory() -> str:
    """Seconds an epoch with freed memory given back and kept."""
    rows = [
        [
            f"{row['n_genes']:,}",
            row["n_components"],
            *(f"{row['pages_a_step'][way]:,}" for way in ("given back", "kept")),
            *(f"{row['seconds_an_epoch'][way]['median']:.3f}" for way in ("given back", "kept")),
            _with_quartiles(row["ratio"]),
        ]
        for row in read(RESULTS / "memory.json", {"rows": []})["rows"]
    ]
    header = ("genes", "S", "pages a step", "kept", "seconds an epoch", "kept", "ratio")
    return markdown(header, rows)


def thinning() -> str:
    """Seconds an epoch with and without thinning beside SCVI's, and of the draws alone."""
    measured = read(RESULTS / "thinning.json", {"epochs": [], "draws": []})
    epochs = []
    for row in measured["epochs"]:
        seconds = f"{row['seconds_an_epoch']['median']:.3f}"
        epochs.append([_shown(row["model"]), seconds, _with_quartiles(row["ratio"])])
    draws = []
    for row in measured["draws"]:
        times = [f"{times['median']:.2f}" for times in row["milliseconds"].values()]
        nonzero = f"{100 * row['nonzero']:.0f} %"
        draws.append([row["counts"], nonzero, *times, _with_quartiles(row["ratio"])])
    header = ("128 cells of", "nonzero", "torch.binomial, ms", "scmixvi, ms", "ratio")
    return (
        markdown(("model", "seconds an epoch", "over SCVI"), epochs)
        + "\n"
        + markdown(header, draws)
    )


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
                cell["precision"],
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
        *(
            "recipe",
            "sizes",
            "precision",
            "S",
            "million weights",
            "s a step, clock",
            "s a step, processor",
        ),
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

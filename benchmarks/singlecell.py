r"""Seconds an epoch of MixtureSCVI against scvi.model.SCVI, side by side in one process.

    python -m benchmarks.singlecell --components 1 2 4 8 16 32 64             # cortex
    python -m benchmarks.singlecell --data synthetic --n-cells 100000 --epochs 1 --rounds 3
    python -m benchmarks.singlecell --data synthetic --n-cells 1000000 --epochs 1 --rounds 3 \
        --max-steps 1500                                  # a fifth of each epoch
    python -m benchmarks.singlecell --parts inference     # what users ask a trained model for
    python -m benchmarks.singlecell --parts               # the plot, from the JSON that is there

Every round trains each model for a few epochs, one model after the other, so that whatever else
the machine does slows all of them; the ratios are taken within a round. The first epoch of every
round is warm-up. With `--max-steps` an epoch ends after that many steps, on cells from all of the
data, and its seconds are scaled up to a whole one. With `--compile` torch compiles all models, SCVI
too, in the mode that is named; an epoch before the rounds, in which it does so, is left out, and
where the time of a compiled step goes is not known. Memory is measured in a process of its own for
each model. Results go to results/singlecell.json, one entry for data, device and threads, to which
the parts (training, floor, memory, inference) are added, each with its environment.
"""

import argparse
import logging
import multiprocessing
import time
import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import scvi
import torch
from scipy.sparse import csr_matrix
from torch._dynamo.utils import counters

import scmixvi
from benchmarks import RESULTS
from benchmarks._clock import EpochClock, PartsProfiler, peak_memory, shares, timed_parts
from benchmarks._floor import floor_seconds
from benchmarks._timing import ratios, summary
from scmixvi.records import environment, read, write

RESULT = RESULTS / "singlecell.json"
BATCH_SIZE = 128
BASELINE = "SCVI"
PARTS = ("training", "floor", "memory", "inference")
TICKS = (1, 2, 4, 8, 16, 32, 64)  # of the plot
STEPS_OF_MEMORY = 200  # after which it no longer grows


def synthetic(
    n_cells: int, n_genes: int = 2000, density: float = 0.07, seed: int = 0
) -> ad.AnnData:
    """Counts of which 5 to 10 % are not zero, `[n_cells, n_genes]`, CSR."""
    popularity = np.random.default_rng(0).gamma(0.5, size=n_genes)
    generator = np.random.default_rng(seed)
    cumulative = np.cumsum(popularity / popularity.sum())
    per_cell = generator.poisson(1.25 * density * n_genes, n_cells)
    rows = np.repeat(np.arange(n_cells, dtype=np.int32), per_cell)
    columns = np.searchsorted(cumulative, generator.random(len(rows))).clip(max=n_genes - 1)
    values = 1 + generator.geometric(0.6, len(rows)).astype(np.float32) // 2
    counts = csr_matrix((values, (rows, columns.astype(np.int32))), shape=(n_cells, n_genes))
    counts.sum_duplicates()
    return ad.AnnData(counts)


def load(name: str, n_cells: int) -> tuple[ad.AnnData, str | None]:
    """Counts and the column of batches."""
    if name == "cortex":
        return scmixvi.datasets.cortex(), None
    if name == "sc_mixology":
        adata = scmixvi.datasets.sc_mixology()
        variance = adata.X.power(2).mean(0).A1 - np.square(adata.X.mean(0).A1)
        return adata[:, np.sort(np.argsort(-variance)[:4000])].copy(), "batch"
    return synthetic(n_cells), None


def models(adata: ad.AnnData, batch_key: str | None, components: list[int]) -> dict:
    """SCVI, and MixtureSCVI for every S, all on the same data."""
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
    found = {BASELINE: scvi.model.SCVI(adata)}
    scmixvi.MixtureSCVI.setup_anndata(adata, batch_key=batch_key)
    for n_components in components:
        found[f"S = {n_components}"] = scmixvi.MixtureSCVI(adata, n_components=n_components)
    return found


def fit(model: scvi.model.SCVI, epochs: int, **kwargs: object) -> EpochClock:
    """Train with everything at its default except what prints.

    scvi-tools leaves a trained module in evaluation mode, in which a second training would run.
    """
    clock = EpochClock()
    model.module.train()
    if isinstance(model, scmixvi.MixtureSCVI):
        kwargs["latent_key"] = None
    model.train(
        max_epochs=epochs,
        batch_size=BATCH_SIZE,
        callbacks=[clock],
        enable_progress_bar=False,
        **kwargs,
    )
    return clock


def n_steps(model: scvi.model.SCVI) -> int:
    """Steps of a whole epoch: on 90 % of the cells, scvi-tools' default."""
    return -(-int(np.ceil(0.9 * model.adata.n_obs)) // BATCH_SIZE)


def where_time_goes(
    model: scvi.model.SCVI, epochs: int, options: dict[str, Any]
) -> dict[str, float]:
    """Shares of a training run's seconds; none of a compiled one, whose parts are one."""
    if "plan_kwargs" in options:
        return {}
    profiler = PartsProfiler()
    with timed_parts(model.module) as seconds:
        clock = fit(model, epochs, profiler=profiler, **options)
    return shares(seconds, profiler, clock.starts[-1] - clock.starts[0])


def how_to_train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `train`: the steps of an epoch, or 1.0 for all, and whether to compile."""
    options: dict[str, Any] = {"limit_train_batches": arguments.max_steps or 1.0}
    if arguments.compile is None:
        return options
    # Every model has two shapes of minibatch, and after these many of one function torch gives up.
    torch._dynamo.config.cache_size_limit = 64
    compiled = {"compile": True, "compile_kwargs": {"mode": arguments.compile}}
    return options | {"plan_kwargs": compiled}


def train_all(found: dict, epochs: int, rounds: int, options: dict[str, Any]) -> tuple[dict, dict]:
    """Median seconds an epoch of each round, by model: of the clock and of the processor."""
    limit = options["limit_train_batches"]
    if "plan_kwargs" in options:
        for model in found.values():
            counters.clear()
            fit(model, 1, **options)
            if not counters["stats"]["unique_graphs"]:  # scvi-tools lets torch go on without
                raise RuntimeError("torch could not compile: is there a C compiler?")
    seconds: dict[str, list[float]] = {name: [] for name in found}
    processor: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, model in found.items():
            clock = fit(model, epochs + 1, **options)
            whole = 1.0 if isinstance(limit, float) else n_steps(model) / min(limit, n_steps(model))
            seconds[name].append(whole * float(np.median(clock.epochs(warmup=1))))
            processor[name].append(whole * float(np.median(clock.processor_epochs(warmup=1))))
    return seconds, processor


def entry(
    name: str, model: scvi.model.SCVI, seconds: list[float], epochs: int, options: dict[str, Any]
) -> dict:
    """Everything about one model."""
    return {
        "model": name,
        "seconds_an_epoch": summary(seconds, digits=4),
        "cells_a_second": round(len(model.train_indices) / float(np.median(seconds))),
        "shares": where_time_goes(model, epochs + 1, options),
    }


def floor_of(model: scvi.model.SCVI) -> dict[str, float]:
    """Seconds an epoch that the products and the bytes of its steps take."""
    n_parameters = sum(p.numel() for p in model.module.parameters())
    n_components = getattr(model.module, "n_components", 1)
    a_step = floor_seconds(n_components, BATCH_SIZE, model.adata.n_vars, n_parameters)
    return {name: round(seconds * n_steps(model), 4) for name, seconds in a_step.items()}


def peak_of(case: dict[str, Any], components: list[int]) -> dict[str, float]:
    """Peak memory of a training above what data and model hold before it; for a process of its own.

    Without components it is SCVI's.
    """
    quiet(case["threads"])
    torch.set_float32_matmul_precision(case["matmul_precision"])
    adata, batch_key = load(case["data"], case["n_cells"])
    *_, model = models(adata, batch_key, components).values()
    with peak_memory() as found:
        fit(model, 1, limit_train_batches=min(STEPS_OF_MEMORY, n_steps(model)))
    return found


def memory_of_all(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Peak memory by model."""
    cases = {BASELINE: []} | {f"S = {n}": [n] for n in arguments.components}
    found = {}
    for name, components in cases.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(peak_of, (vars(arguments), components))
    return found


def inference_calls(model: scvi.model.SCVI, n_cells: int) -> dict[str, Callable[[], object]]:
    """What users ask a trained model for."""
    some = np.arange(min(n_cells, 1000))
    few = some[:128]
    return {
        "latent": lambda: model.get_latent_representation(),
        "normalized_expression": lambda: model.get_normalized_expression(indices=some),
        "marginal_ll": lambda: model.get_marginal_ll(indices=few, n_mc_samples=1000),
    }


def infer_all(found: dict, rounds: int) -> dict[str, dict]:
    """Seconds of every query, models interleaved."""
    n_cells = next(iter(found.values())).adata.n_obs
    result: dict[str, dict] = {}
    for query in inference_calls(found[BASELINE], n_cells):
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, model in found.items():
                start = time.perf_counter()
                inference_calls(model, n_cells)[query]()
                seconds[name].append(time.perf_counter() - start)
        result[query] = {
            "seconds": {name: summary(taken) for name, taken in seconds.items()},
            "ratio_to_SCVI": ratios(seconds, BASELINE),
        }
    return result


def quiet(threads: int | None) -> None:
    """No messages of Lightning's; that many threads."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)


def table(key: str, result: dict) -> None:
    print(f"\n{key}: {result['n_cells']} cells x {result['n_genes']} genes")
    heads = ("s/epoch", "ratio", "q25-q75", "CPU ratio", "cells/s")
    print(f"{'':8s}" + "".join(f"{head:>11s}" for head in heads) + "  parts")
    for row in result["training"]:
        ratio = row["ratio_to_SCVI"]
        parts = ", ".join(f"{part} {share:.0%}" for part, share in row["shares"].items())
        cells = (
            f"{row['seconds_an_epoch']['median']:.3f}",
            f"{ratio['median']:.2f}",
            f"{ratio['q25']:.2f}-{ratio['q75']:.2f}",
            f"{row['processor_ratio_to_SCVI']['median']:.2f}",
            str(row["cells_a_second"]),
        )
        print(f"{row['model']:8s}" + "".join(f"{cell:>11s}" for cell in cells) + f"  {parts}")


def plot() -> None:
    """Seconds an epoch over SCVI's, against S: a panel a machine, a line a data set."""
    import matplotlib.pyplot as plt

    results = {k: r for k, r in read(RESULT, {}).items() if "training" in r}
    machines = list(dict.fromkeys(_machine(key) for key in results))
    labels = dict.fromkeys(key.replace(f", {_machine(key)}", "") for key in results)
    colours = {label: f"C{i}" for i, label in enumerate(labels)}
    figure, axes = plt.subplots(
        1,
        len(machines),
        figsize=(3.6 * len(machines), 4.2),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, machine in zip(axes[0], machines, strict=True):
        for key, result in results.items():
            if _machine(key) != machine:
                continue
            rows = [row for row in result["training"] if row["model"] != BASELINE]
            components = [int(row["model"].removeprefix("S = ")) for row in rows]
            ratio = [[row["ratio_to_SCVI"][q] for row in rows] for q in ("q25", "median", "q75")]
            label = key.replace(f", {machine}", "")
            axis.fill_between(components, ratio[0], ratio[2], color=colours[label], alpha=0.2)
            axis.plot(components, ratio[1], color=colours[label], marker="o", label=label)
        axis.axhline(1, color="grey", linestyle="--", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="components S", title=machine)
        axis.set_xticks(TICKS, labels=map(str, TICKS), minor=False)
        axis.set_yticks([0.35, *TICKS[:5]], labels=["0.35", *map(str, TICKS[:5])], minor=False)
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_minor_formatter("")
        axis.legend(frameon=False, fontsize=7, loc="upper left")
    axes[0, 0].set_ylabel("seconds an epoch / SCVI's")
    figure.savefig(RESULT.with_suffix(".png"), dpi=120)


def _machine(key: str) -> str:
    """Where an entry of the JSON was timed: what follows data and number of cells in its name."""
    return ", ".join(key.split(", ")[2:4])


def timed(arguments: argparse.Namespace, found: dict) -> dict[str, Any]:
    """Seconds of training, by model."""
    options = how_to_train(arguments)
    seconds, processor = train_all(found, arguments.epochs, arguments.rounds, options)
    ratio, processor_ratio = ratios(seconds, BASELINE), ratios(processor, BASELINE)
    rows = [
        {
            **entry(name, model, seconds[name], arguments.epochs, options),
            "ratio_to_SCVI": ratio[name],
            "processor_seconds_an_epoch": summary(processor[name], digits=4),
            "processor_ratio_to_SCVI": processor_ratio[name],
        }
        for name, model in found.items()
    ]
    return {"max_steps_an_epoch": arguments.max_steps, "training": rows}


def run(arguments: argparse.Namespace) -> None:
    """Measure the parts that are asked for and add them to the JSON."""
    adata, batch_key = load(arguments.data, arguments.n_cells)
    machine = environment()
    measured: dict[str, Any] = {
        "n_cells": adata.n_obs,
        "n_genes": adata.n_vars,
        "nonzero": round(adata.X.nnz / np.prod(adata.shape), 3),
    }
    threads, device = torch.get_num_threads(), machine["device"]
    key = f"{arguments.data}, {adata.n_obs} cells, {device}, {threads} threads"
    if arguments.matmul_precision != "highest":
        key += f', products "{arguments.matmul_precision}"'
    if arguments.compile:
        key += f', compiled "{arguments.compile}"'
    if set(arguments.parts) != {"memory"}:
        found = models(adata, batch_key, arguments.components)
    if "training" in arguments.parts:
        measured |= timed(arguments, found)
        table(key, measured)
    if "floor" in arguments.parts:
        measured["floor"] = {name: floor_of(model) for name, model in found.items()}
        print("floor", measured["floor"])
    if "inference" in arguments.parts:
        if "training" not in arguments.parts:
            for model in found.values():
                fit(model, 1, limit_train_batches=arguments.max_steps or 1.0)
        measured["inference"] = infer_all(found, arguments.rounds)
        for query, taken in measured["inference"].items():
            print(query, {n: r["median"] for n, r in taken["ratio_to_SCVI"].items()})
    if "memory" in arguments.parts:
        measured["memory"] = memory_of_all(arguments)
        print("peak memory", measured["memory"])
    before = read(RESULT, {})
    entry_before = before.get(key, {})
    machines = entry_before.get("environments", {}) | dict.fromkeys(arguments.parts, machine)
    write(RESULT, {**before, key: entry_before | measured | {"environments": machines}})


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=["cortex", "sc_mixology", "synthetic"], default="cortex")
    parser.add_argument("--n-cells", type=int, default=100_000, help="of the synthetic data")
    parser.add_argument("--components", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS[:3]))
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-steps", type=int, help="of an epoch; all of them by default")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--matmul-precision",
        choices=["highest", "high", "medium"],
        default="highest",
        help="torch.set_float32_matmul_precision, for all models",
    )
    parser.add_argument(
        "--compile",
        choices=["default", "reduce-overhead"],
        help="compile all models; the second records CUDA graphs",
    )
    arguments = parser.parse_args()
    if arguments.compile and arguments.parts != ["training"]:
        parser.error("only training is compiled: pass --parts training")
    quiet(arguments.threads)
    torch.set_float32_matmul_precision(arguments.matmul_precision)
    if arguments.parts:
        run(arguments)
    plot()


if __name__ == "__main__":
    main()

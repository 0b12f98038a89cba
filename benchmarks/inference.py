"""Seconds and peak memory of what a trained model is asked, beside scvi.model.SCVI.

    python -m benchmarks.inference --queries marginal_ll --rounds 7
    python -m benchmarks.inference --queries latents --n-cells 1000000 --rounds 3
    python -m benchmarks.inference --queries refined
    python -m benchmarks.inference --queries importance --n-cells 100000

"marginal_ll": get_marginal_ll with 1000 samples a cell, both with their defaults, on `--some`
cells of cortex, and SCVI again in passes of 100 samples, where its default takes one a pass.
"refined": get_latent_representation(n_refinement_steps=100) of all cells of cortex, beside 20
epochs of SCVI's training on them.
"latents": get_latent_representation, and "importance":
get_normalized_expression(weights="importance", n_samples_overall=5000), on synthetic counts of
2000 genes. Models alternate within a round. Seconds of "importance" grow with cells times anchors,
1024 of them by default, and both are measured apart: all anchors for `--some` cells, and all cells
with `--anchors` anchors, each in a process of its own for its peak memory. SCVI is run on `--some`
cells alone, for its memory grows with both, and not at all with `--mixture-alone`:

    python -m benchmarks.inference --queries importance --mixture-alone --anchors 1024

What queries of cortex cost against S is a part of :mod:`benchmarks.singlecell`.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch

import scmixvi
from benchmarks import RESULTS
from benchmarks._clock import forget_peak, peak_mb
from benchmarks._timing import summary
from benchmarks.singlecell import quiet, synthetic
from scmixvi.records import environment, read, write

RESULT = RESULTS / "inference.json"
N_DRAWS, ANCHORS = 5000, 1024


def models(adata: Any, sizes: Sequence[int] = (4,)) -> dict[str, scvi.model.SCVI]:
    """SCVI, and MixtureSCVI of the sizes S, after an epoch on 3000 cells at most."""
    found = {}
    some = adata[:3000].copy() if adata.n_obs > 3000 else adata
    for size in (None, *sizes):
        scvi.settings.seed = 0
        cls = scvi.model.SCVI if size is None else scmixvi.MixtureSCVI
        kwargs = {} if size is None else {"latent_key": None}
        arguments = {} if size is None else {"n_components": size}
        cls.setup_anndata(some)
        model = cls(some, **arguments)
        model.train(1, accelerator="cpu", enable_progress_bar=False, **kwargs)
        if some is not adata:
            cls.setup_anndata(adata)
            whole = cls(adata, **arguments)
            whole.module.load_state_dict(model.module.state_dict())
            whole.module.eval()
            whole.is_trained_, model = True, whole
        found["SCVI" if size is None else f"S = {size}"] = model
    return found


def calls(query: str, arguments: argparse.Namespace) -> tuple[int, dict[str, Callable[[], Any]]]:
    """How many cells, and what is timed, by name."""
    if query == "latents":
        found = models(synthetic(arguments.n_cells))
        return arguments.n_cells, {n: m.get_latent_representation for n, m in found.items()}
    cortex = scmixvi.datasets.cortex()
    if query == "refined":
        scvi_model, *mixtures = models(cortex, (1, 4)).values()
        training = {"accelerator": "cpu", "enable_progress_bar": False}
        return cortex.n_obs, {
            "SCVI, 20 epochs of training": lambda: scvi_model.train(20, **training),
            **{
                f"S = {m.module.n_components}": partial(
                    m.get_latent_representation, n_refinement_steps=100
                )
                for m in mixtures
            },
        }
    found = models(cortex)
    some = {"indices": np.arange(arguments.some), "n_mc_samples": 1000}
    scvi_model, mixture = found.values()
    return arguments.some, {
        "SCVI": lambda: scvi_model.get_marginal_ll(**some),
        "SCVI, 100 samples a pass": lambda: scvi_model.get_marginal_ll(
            **some, n_mc_samples_per_pass=100
        ),
        "S = 4": lambda: mixture.get_marginal_ll(**some),
    }


def interleaved(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict]:
    """Seconds of the clock and of the processor of every round, by name."""
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"clock": [], "processor": []} for name in candidates
    }
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter(), time.process_time()
            call()
            seconds[name]["clock"].append(time.perf_counter() - start[0])
            seconds[name]["processor"].append(time.process_time() - start[1])
    return seconds


def beside(query: str, arguments: argparse.Namespace) -> dict:
    """A query of all models, alternating."""
    quiet(arguments.threads)
    n_cells, candidates = calls(query, arguments)
    seconds = interleaved(candidates, arguments.rounds)
    return {
        "cells": n_cells,
        "rounds": arguments.rounds,
        "seconds": {
            name: {unit: summary(values) for unit, values in taken.items()}
            for name, taken in seconds.items()
        },
        "SCVI_over_mixture": {
            name: {
                unit: summary([a / b for a, b in zip(values, seconds["S = 4"][unit], strict=True)])
                for unit, values in taken.items()
            }
            for name, taken in seconds.items()
        },
    }


def importance(case: dict[str, Any]) -> dict[str, float]:
    """Seconds and peak memory of importance-weighted expression of one model."""
    quiet(case["threads"])
    adata = synthetic(case["cells"])
    model = models(adata)[case["model"]]
    forget_peak()
    before, start = peak_mb(), (time.perf_counter(), time.process_time())
    model.get_normalized_expression(
        weights="importance",
        n_samples_overall=N_DRAWS,
        return_numpy=True,
        max_cells=case["anchors"],
    )
    return {
        "seconds": round(time.perf_counter() - start[0], 1),
        "processor_seconds": round(time.process_time() - start[1], 1),
        "held_before_mb": round(before),
        "peak_above_mb": round(peak_mb() - before),
    }


def importance_rows(arguments: argparse.Namespace) -> list[dict]:
    """Both models on some cells; MixtureSCVI on all anchors, and on all cells."""
    some, few = arguments.some, arguments.anchors
    cases = [("S = 4", arguments.n_cells, few)]
    if not arguments.mixture_alone:
        cases = [("SCVI", some, few), ("S = 4", some, few), ("S = 4", some, ANCHORS), *cases]
    rows = []
    for model, cells, anchors in cases:
        case = {"model": model, "cells": cells, "anchors": anchors, "threads": arguments.threads}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(case | {"draws": N_DRAWS} | pool.apply(importance, (case,)))
        print(rows[-1], flush=True)
    return rows


def with_others(rows: list[dict], before: list[dict]) -> list[dict]:
    """Rows, after those of earlier runs that are not measured again."""

    def case(row: dict) -> tuple:
        return tuple(row[key] for key in ("model", "cells", "anchors", "threads"))

    again = {case(row) for row in rows}
    return [row for row in before if case(row) not in again] + rows


def main() -> None:
    """Run the queries and add them to the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    queries = ("marginal_ll", "refined", "latents", "importance")
    parser.add_argument("--queries", nargs="+", choices=queries, default=list(queries))
    parser.add_argument("--n-cells", type=int, default=100_000, help="of the synthetic data")
    parser.add_argument("--some", type=int, default=128, help="cells where few suffice")
    parser.add_argument("--anchors", type=int, default=32, help="where all 1024 take too long")
    parser.add_argument("--mixture-alone", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for query in arguments.queries:
        if query == "importance":
            rows = importance_rows(arguments)
            before = read(arguments.result, {}).get(query, {"rows": []})["rows"]
            content: Any = {"rows": with_others(rows, before)}
        else:
            content = beside(query, arguments)
            print(query, content["SCVI_over_mixture"], flush=True)
        content |= {"environment": environment("cpu")}
        write(arguments.result, read(arguments.result, {}) | {query: content})


if __name__ == "__main__":
    main()

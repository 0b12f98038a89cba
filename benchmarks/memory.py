"""What it gains that the memory which a training step frees is kept for the next one.

    python -m benchmarks.memory            # writes results/memory.json

Every training is a process of its own, of which each way of a round takes one: with the memory
kept, as `MixtureSCVI.train` does it, and with glibc left to itself, which at times gives it back to
the system. The counts are synthetic.
"""

import argparse
import multiprocessing
import resource
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np

import scmixvi
from benchmarks import RESULTS
from benchmarks._timing import ratios, summary
from benchmarks.singlecell import fit, n_steps, quiet, synthetic
from scmixvi.core.memory import freed_memory_kept
from scmixvi.records import environment, write
from scmixvi.singlecell._training import fitting as _fitting

RESULT = RESULTS / "memory.json"
WAYS = {"given back": nullcontext, "kept": freed_memory_kept}


def page_faults() -> int:
    """Pages that the system has filled for this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def trained(
    way: str, n_cells: int, n_genes: int, n_components: int, epochs: int, threads: int
) -> tuple[float, float]:
    """Seconds an epoch without the first, and pages filled a step, of all of the training."""
    quiet(threads)
    adata = synthetic(n_cells, n_genes)
    scmixvi.MixtureSCVI.setup_anndata(adata)
    model = scmixvi.MixtureSCVI(adata, n_components=n_components)
    before = page_faults()
    with mock.patch.object(_fitting, "freed_memory_kept", WAYS[way]):
        clock = fit(model, epochs + 1)
    pages = (page_faults() - before) / ((epochs + 1) * n_steps(model))
    return float(np.median(clock.epochs(warmup=1))), pages


def compare(n_genes: int, n_components: int, options: argparse.Namespace) -> dict:
    """Both ways, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    pages: dict[str, list[float]] = {name: [] for name in WAYS}
    case = options.n_cells, n_genes, n_components, options.epochs, options.threads
    for _ in range(options.rounds):
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                taken, filled = pool.apply(trained, (way, *case))
            seconds[way].append(taken)
            pages[way].append(filled)
    return {
        "n_genes": n_genes,
        "n_components": n_components,
        "seconds_an_epoch": {name: summary(values, digits=4) for name, values in seconds.items()},
        "pages_a_step": {n: round(float(np.median(values))) for n, values in pages.items()},
        "ratio": ratios(seconds, "given back")["kept"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-cells", type=int, default=2000)
    parser.add_argument("--n-genes", type=int, nargs="+", default=[4000, 16000])
    parser.add_argument("--components", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = []
    for n_genes in options.n_genes:
        for n_components in options.components:
            rows.append(compare(n_genes, n_components, options))
            print(rows[-1], flush=True)
    found = {"environment": environment(), "threads": options.threads, "rows": rows}
    write(options.result, found)


if __name__ == "__main__":
    main()

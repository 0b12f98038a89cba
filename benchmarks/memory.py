"""What it gains that the memory which a training step frees is kept for the next one.

    python -m benchmarks.memory            # writes results/memory.json

Counts of 2000 synthetic cells. In every round each model trains with the memory kept, as
`MixtureSCVI.train` does it, and with glibc left to itself, which gives it back to the system.
"""

import argparse
import resource
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np

import scmixvi
from benchmarks import RESULTS
from benchmarks._timing import ratios, summary
from benchmarks.singlecell import fit, n_steps, quiet, synthetic
from scmixvi.core.memory import freed_memory_kept
from scmixvi.records import environment, write
from scmixvi.singlecell import _fitting

RESULT = RESULTS / "memory.json"
N_CELLS = 2000
WAYS = {"given back": nullcontext, "kept": freed_memory_kept}


def page_faults() -> int:
    """Pages that the system has filled for this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def trained(
    model: scmixvi.MixtureSCVI, way: type[AbstractContextManager], epochs: int
) -> tuple[float, float]:
    """Seconds an epoch without the first, and pages filled a step, of all of the training."""
    before = page_faults()
    with mock.patch.object(_fitting, "freed_memory_kept", way):
        clock = fit(model, epochs + 1)
    steps = (epochs + 1) * n_steps(model)
    return float(np.median(clock.epochs(warmup=1))), (page_faults() - before) / steps


def compare(n_genes: int, n_components: int, epochs: int, rounds: int) -> dict:
    """Both ways, in turn."""
    adata = synthetic(N_CELLS, n_genes)
    scmixvi.MixtureSCVI.setup_anndata(adata)
    model = scmixvi.MixtureSCVI(adata, n_components=n_components)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    faults: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            taken, pages = trained(model, way, epochs)
            seconds[name].append(taken)
            faults[name].append(pages)
    return {
        "n_genes": n_genes,
        "n_components": n_components,
        "seconds_an_epoch": {name: summary(values, digits=4) for name, values in seconds.items()},
        "pages_a_step": {n: round(float(np.median(values))) for n, values in faults.items()},
        "ratio": ratios(seconds, "given back")["kept"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n-genes", type=int, nargs="+", default=[1200, 4000, 16000])
    parser.add_argument("--components", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    quiet(arguments.threads)
    rows = []
    for n_genes in arguments.n_genes:
        for n_components in arguments.components:
            rows.append(compare(n_genes, n_components, arguments.epochs, arguments.rounds))
            print(rows[-1], flush=True)
    found = {"environment": environment(), "threads": arguments.threads, "rows": rows}
    write(arguments.result, found)


if __name__ == "__main__":
    main()

"""What `thinning_rate` costs: an epoch with and without it, and the loop against torch's draws.

    python -m benchmarks.thinning            # cortex; writes results/thinning.json

Every round trains SCVI and each MixtureSCVI for a few epochs, one after the other, as
`benchmarks.singlecell` does. The loop that numba compiles and `torch.binomial` thin the same
minibatch of 128 cells, of cortex and of counts of which 7 % are not zero.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import scmixvi
from benchmarks import RESULTS
from benchmarks._timing import interleaved, ratios, summary
from benchmarks.singlecell import BASELINE, BATCH_SIZE, load, models, quiet, train_all
from scmixvi.records import environment, write
from scmixvi.singlecell._loops import thinning as _thinning

RESULT = RESULTS / "thinning.json"
RATE = 0.9
COMPONENTS = (1, 4)


def epochs_of(adata: object, epochs: int, rounds: int) -> list[dict]:
    """Seconds an epoch of every model, and its ratio to SCVI's."""
    found = models(adata, None, list(COMPONENTS))
    for size in COMPONENTS:
        thinned = scmixvi.MixtureSCVI(adata, n_components=size, thinning_rate=RATE)
        found[f"S = {size}, thinned"] = thinned
    seconds, _ = train_all(found, epochs, rounds, {"limit_train_batches": 1.0})
    relative = ratios(seconds, BASELINE)
    return [
        {"model": name, "seconds_an_epoch": summary(values, digits=4), "ratio": relative[name]}
        for name, values in seconds.items()
    ]


def torchs(x: Tensor) -> Tensor:
    """The draws of :func:`scmixvi.singlecell._loops.thinning.thinned` by torch."""
    return _thinning.by_torch(x, 1 - RATE * torch.rand(len(x)))


def draws_of(counts: dict[str, Tensor], rounds: int) -> list[dict]:
    """Milliseconds of thinning one minibatch, by the loop and by torch."""
    rows = []
    for name, x in counts.items():
        calls: dict[str, Callable[[], object]] = {
            "torch.binomial": lambda x=x: torchs(x),
            "scmixvi": lambda x=x: _thinning.thinned(x, RATE),
        }
        seconds = interleaved(calls, rounds)
        rows.append(
            {
                "counts": name,
                "nonzero": round((x > 0).float().mean().item(), 3),
                "milliseconds": {call: summary(s, scale=1e3) for call, s in seconds.items()},
                "ratio": ratios(seconds, "torch.binomial")["scmixvi"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    quiet(arguments.threads)
    torch.manual_seed(0)
    cortex, _ = load("cortex", 0)
    sparse, _ = load("synthetic", BATCH_SIZE)
    counts = {
        name: torch.from_numpy(adata.X[:BATCH_SIZE].toarray()).float()
        for name, adata in {"cortex": cortex, "synthetic": sparse}.items()
    }
    found = {
        "environment": environment(),
        "threads": torch.get_num_threads(),
        "rate": RATE,
        "draws": draws_of(counts, 10 * arguments.rounds),
        "epochs": epochs_of(cortex, arguments.epochs, arguments.rounds),
    }
    write(arguments.result, found)
    for row in (*found["draws"], *found["epochs"]):
        print(row)


if __name__ == "__main__":
    main()

"""The wide products of a training step, by the two libraries that torch has on a CPU.

    python -m benchmarks.products            # writes results/products.json

The shapes are those of 128 cells of cortex (1200 genes) and 128 hidden units; each is multiplied
by torch's own product and by oneDNN, in turn.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import RESULTS
from benchmarks._timing import interleaved, ratios, summary
from scmixvi.records import environment, write
from scmixvi.singlecell import _products as products

RESULT = RESULTS / "products.json"
N_CELLS, N_GENES, N_HIDDEN = 128, 1200, 128


def factors(n_components: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Matrices a and b of every wide product a b^T, as the step has them."""
    cells, weight = torch.randn(N_CELLS, N_GENES), torch.randn(n_components * N_HIDDEN, N_GENES)
    of_hidden = torch.randn(N_CELLS, len(weight))
    hidden, head = torch.randn(n_components * N_CELLS, N_HIDDEN), torch.randn(N_GENES, N_HIDDEN)
    slopes = torch.randn(len(hidden), N_GENES)
    return {
        "encoder": (cells, weight),
        "encoder, its weights' gradient": (of_hidden.T, cells.T),
        "decoder's head": (hidden, head),
        "decoder's head, its inputs' gradient": (slopes, head.T),
        "decoder's head, its weights' gradient": (hidden.T, slopes.T),
    }


def compare(name: str, a: Tensor, b: Tensor, rounds: int) -> dict:
    """Milliseconds of one product, its ratio, and the largest error of both beside float64."""
    exact = a.double() @ b.double().T
    calls: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: torch.mm(a, b.T),
        "oneDNN": lambda: products._by_onednn(a, b),
    }
    seconds = interleaved(calls, rounds, warmup=rounds // 10 + 1)
    return {
        "product": name,
        "shape": [len(a), a.shape[1], len(b)],
        "threads": torch.get_num_threads(),
        "milliseconds": {call: summary(taken, scale=1e3) for call, taken in seconds.items()},
        "ratio": ratios(seconds, "torch")["oneDNN"],
        "largest_error": {n: float((call() - exact).abs().max()) for n, call in calls.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--components", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for n_components in arguments.components:
            for name, (a, b) in factors(n_components).items():
                row = compare(name, a, b, arguments.rounds)
                rows.append({"n_components": n_components} | row)
                print(rows[-1], flush=True)
    taken = products._onednn_is_faster()
    write(arguments.result, {"environment": environment(), "onednn_is_taken": taken, "rows": rows})


if __name__ == "__main__":
    main()

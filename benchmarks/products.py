"""The wide products of a training step, by the two libraries that torch has on a CPU.

    python -m benchmarks.products            # writes results/products.json

The shapes are those of 128 cells of cortex (1200 genes) and 128 hidden units; each is multiplied
by torch's own product and by oneDNN, in turn. So are those of the image MLP of the paper's sizes,
in whole training steps and tests.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import RESULTS
from benchmarks._timing import interleaved, ratios, summary
from benchmarks.image import training_step
from scmixvi.core import products
from scmixvi.records import environment, write

RESULT = RESULTS / "products.json"
N_CELLS, N_GENES, N_HIDDEN = 128, 1200, 128
N_IMAGES, N_TESTED, N_DRAWS = 100, 20, 500


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


def image_mlp(n_components: int) -> dict[str, Callable[[], Tensor]]:
    """What is done with the image MLP of the paper's sizes."""
    vae, step = training_step("mlp", "paper", n_components, N_IMAGES, "cpu")
    images = torch.rand(N_TESTED, *vae.image_size).round()
    return {
        f"training step, {N_IMAGES} images": step,
        f"log p(x), {N_TESTED} images, L = {N_DRAWS}": lambda: vae.nll(images, N_DRAWS),
    }


def by_torch(call: Callable[[], Tensor]) -> Tensor:
    """Leave all products to MKL."""
    with torch.backends.mkldnn.flags(enabled=False):
        return call()


def compare_calls(name: str, call: Callable[[], Tensor], rounds: int) -> dict:
    """Milliseconds of `call` with either library, and their ratio."""
    seconds = interleaved({"torch": partial(by_torch, call), "oneDNN": call}, rounds)
    return {
        "call": name,
        "threads": torch.get_num_threads(),
        "milliseconds": {way: summary(taken, scale=1e3) for way, taken in seconds.items()},
        "ratio": ratios(seconds, "torch")["oneDNN"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--components", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows, of_images = [], []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for n_components in arguments.components:
            for name, (a, b) in factors(n_components).items():
                row = compare(name, a, b, arguments.rounds)
                rows.append({"n_components": n_components} | row)
                print(rows[-1], flush=True)
            for name, call in image_mlp(n_components).items():
                row = compare_calls(name, call, max(arguments.rounds // 4, 1))
                of_images.append({"n_components": n_components} | row)
                print(of_images[-1], flush=True)
    taken = products.onednn_is_faster()
    content = {"environment": environment(), "onednn_is_taken": taken}
    write(arguments.result, content | {"rows": rows, "image_mlp": of_images})


if __name__ == "__main__":
    main()

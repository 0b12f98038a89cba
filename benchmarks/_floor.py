"""What a training step cannot do without: matrix products, and bytes through memory."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from scmixvi.core.products import product


def _seconds(call: Callable[[], object], rounds: int = 15) -> float:
    """Least seconds of a call; on a GPU of many in a row, so that no launch is waited for."""
    on_gpu, taken = torch.cuda.is_available(), []
    n_calls = 100 if on_gpu else 1
    for _ in range(rounds + 2):
        start = time.perf_counter()
        for _ in range(n_calls):
            call()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / n_calls)
    return min(taken[2:])


def _products(n_rows: int, n_in: int, n_out: int, device: str, input_gradient: bool) -> float:
    """Seconds of a linear layer, forward and backward, by the faster library that torch has."""
    x, weight = torch.randn(n_rows, n_in, device=device), torch.randn(n_out, n_in, device=device)
    out = torch.randn(n_rows, n_out, device=device)
    seconds = _seconds(lambda: product(x, weight)) + _seconds(lambda: product(x.T, out.T))
    return seconds + (_seconds(lambda: product(out, weight.T)) if input_gradient else 0.0)


def _bandwidth(device: str) -> float:
    """Bytes a second, counting what is read and what is written."""
    source: Tensor = torch.randn(2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def floor_seconds(
    n_components: int, batch_size: int, n_genes: int, n_parameters: int, n_hidden: int = 128
) -> dict[str, float]:
    """Seconds a step: products of the wide layers measured, bytes at the measured bandwidth.

    The bytes are those of two `[S*B, G]` decoder outputs, read once and replaced by their
    gradients once, and of Adam (parameter, gradient and two moments read, three written).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = n_components * batch_size
    products = _products(batch_size, n_genes, n_components * n_hidden, device, False)
    products += 2 * _products(rows, n_hidden, n_genes, device, True)
    moved = 4 * (4 * rows * n_genes + 7 * n_parameters)
    return {"products": products, "bytes": moved / _bandwidth(device)}

"""Evaluation in passes whose tensors stay in the processor's cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of one likelihood tensor that an evaluation pass may hold: 64 MB in float32 on a GPU;
# on a CPU 8 MB, which its cache holds and its allocator keeps for the next pass.
_ELEMENTS_A_PASS, _ELEMENTS_A_PASS_ON_CPU = 2**24, 2**21
# Elements of one matrix of counts on a CPU: its terms are computed once for all draws of a pass.
_COUNTS_A_PASS_ON_CPU = 2**15


def cells_in_passes(tensors: dict[str, Any], x: Tensor) -> Iterator[dict[str, Any]]:
    """Split a minibatch with counts x `[n, G]` into near equal ones for one pass each.

    A GPU takes the minibatch whole.
    """
    n_cells, n_genes = x.shape
    n_passes = 1 if x.device.type != "cpu" else -(-n_cells * n_genes // _COUNTS_A_PASS_ON_CPU)
    if n_passes == 1:
        yield tensors
        return
    for rows in torch.arange(n_cells).tensor_split(min(n_passes, n_cells)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        yield {name: rows_of(tensor, part, n_cells) for name, tensor in tensors.items()}


def draws_a_pass(x: Tensor) -> int:
    """How many draws of the cells with counts x `[n, G]` one pass decodes."""
    elements = _ELEMENTS_A_PASS_ON_CPU if x.device.type == "cpu" else _ELEMENTS_A_PASS
    return max(1, elements // x.numel())


def rows_of(tensor: Any, rows: slice | Tensor, n_cells: int) -> Any:
    """Some rows of a tensor that has one a cell; anything else as it is."""
    has_cells = isinstance(tensor, Tensor) and tensor.dim() > 0 and len(tensor) == n_cells
    return tensor[rows] if has_cells else tensor

"""Matrices written out in their own order, by torch's threads.

What is compiled stands in this file and in :mod:`scmixvi.singlecell._loops.team`, as in
:mod:`scmixvi.singlecell._loops.kernels`.
"""

import numpy as np
import torch
from torch import Tensor

from scmixvi.singlecell._loops.compiled import available, compiled, thread_entry
from scmixvi.singlecell._loops.team import HEAD, array_at, in_parallel, next_rows

BLOCK = 16  # columns at a time: one line of the cache


@compiled()
def _turn(matrix, first, last, out):
    """Columns `first` to `last` into rows of out."""
    if last - first == BLOCK:
        for i in range(matrix.shape[0]):
            for j in range(BLOCK):
                out[first + j, i] = matrix[i, first + j]
    else:
        for i in range(matrix.shape[0]):
            for j in range(first, last):
                out[j, i] = matrix[i, j]


@thread_entry
def _entry(address):
    block = array_at(address, HEAD + 4, np.int64)[HEAD:]
    n_rows, n_columns = block[:2]
    matrix = array_at(block[2], (n_rows, n_columns), np.float32)
    out = array_at(block[3], (n_columns, n_rows), np.float32)
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        for first in range(start * BLOCK, min(stop * BLOCK, n_columns), BLOCK):
            _turn(matrix, first, min(first + BLOCK, n_columns), out)


def contiguous(matrix: Tensor) -> Tensor:
    """Return `matrix.contiguous()`, without gradients."""
    matrix = matrix.detach()
    turned = matrix.T
    plain = matrix.dtype is torch.float32 and matrix.device.type == "cpu" and matrix.numel() > 0
    if matrix.is_contiguous() or not (plain and turned.is_contiguous() and available()):
        return matrix.contiguous()
    out = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    n_blocks = -(-turned.shape[1] // BLOCK)
    in_parallel(_entry, n_blocks, [*turned.shape, turned.data_ptr(), out.data_ptr()])
    return out

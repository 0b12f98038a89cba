"""Sparse counts times the weights of an encoder's first layer, on a CPU.

What is compiled stands in this file and in :mod:`scmixvi.singlecell._loops.team`, as in
:mod:`scmixvi.singlecell._loops.kernels`.
"""

import numpy as np
import torch
from torch import Tensor

from scmixvi.core import products
from scmixvi.singlecell._loops.compiled import available, compiled, thread_entry
from scmixvi.singlecell._loops.team import HEAD, array_at, in_parallel, next_rows

WIDTH = 128  # outputs at a time: their weights, for thousands of genes, stay in the cache

_f = np.float32


@compiled()
def _rows_by_block(data, indices, indptr, weight, out, start, stop):
    """Rows start to stop of a CSR matrix by weights `[n_blocks, G, WIDTH]`, added to out."""
    total = np.empty(WIDTH, _f)
    for b in range(weight.shape[0]):
        first = b * WIDTH
        width = min(WIDTH, out.shape[1] - first)
        for i in range(start, stop):
            total[:] = _f(0)
            j, last = indptr[i], indptr[i + 1]
            while j + 4 <= last:  # four at a time: `total` is read and written once for them
                g, h, k, m = indices[j], indices[j + 1], indices[j + 2], indices[j + 3]
                p, q, r, s = data[j], data[j + 1], data[j + 2], data[j + 3]
                for c in range(WIDTH):
                    total[c] += (
                        p * weight[b, g, c]
                        + q * weight[b, h, c]
                        + r * weight[b, k, c]
                        + s * weight[b, m, c]
                    )
                j += 4
            while j < last:
                g, p = indices[j], data[j]
                for c in range(WIDTH):
                    total[c] += p * weight[b, g, c]
                j += 1
            for c in range(width):
                out[i, first + c] += total[c]


@thread_entry
def _entry(address):
    """What :func:`linear` hands over, into arrays."""
    block = array_at(address, HEAD + 11, np.int64)[HEAD:]
    n_rows, n_stored, n_genes, n_blocks, n_out, wide = block[:6]
    at = block[6:]
    data = array_at(at[0], n_stored, np.float32)
    weight = array_at(at[3], (n_blocks, n_genes, WIDTH), np.float32)
    out = array_at(at[4], (n_rows, n_out), np.float32)
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        if wide:
            indices = array_at(at[1], n_stored, np.int64)
            indptr = array_at(at[2], n_rows + 1, np.int64)
            _rows_by_block(data, indices, indptr, weight, out, start, stop)
        else:
            indices = array_at(at[1], n_stored, np.int32)
            indptr = array_at(at[2], n_rows + 1, np.int32)
            _rows_by_block(data, indices, indptr, weight, out, start, stop)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply :func:`scmixvi.core.products.linear` to dense or CSR rows.

    MKL multiplies CSR rows for torch. On AMD's processors with AVX-512 a loop of this file does;
    not where gradients are wanted.
    """
    return _product(x, weight, bias) if _suits(x, weight) else products.linear(x, weight, bias)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.layout is torch.sparse_csr
        and x.dtype is weight.dtype is torch.float32
        and x.shape[1] == weight.shape[1]
        and x.device.type == weight.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and products.onednn_is_faster()
        and available()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    n_out, n_genes = weight.shape
    blocks = weight.new_zeros(-(-n_out // WIDTH), n_genes, WIDTH)
    for block, own in zip(blocks, weight.split(WIDTH), strict=True):
        block[:, : len(own)] = own.T
    out = weight.new_zeros(len(x), n_out) if bias is None else bias.repeat(len(x), 1)
    data, indices, indptr = x.values().contiguous(), x.col_indices(), x.crow_indices()
    wide = indices.dtype is torch.int64
    sizes = len(x), len(data), n_genes, len(blocks), n_out, int(wide)
    used = data, indices.contiguous(), indptr.contiguous(), blocks, out
    in_parallel(_entry, len(x), [*sizes, *(tensor.data_ptr() for tensor in used)])
    return out

"""Dense and CSR counts: filled with zeros, logarithms, sums over the genes."""

import numpy as np
import torch
from torch import Tensor

from scmixvi.singlecell._loops import kernels
from scmixvi.singlecell._loops.compiled import available


def dense(x: Tensor) -> Tensor:
    """Counts of any layout as a dense tensor; CSR ones on a CPU by a compiled loop."""
    by_loop = x.layout is torch.sparse_csr and x.dtype is torch.float32 and x.device.type == "cpu"
    if not by_loop or x.requires_grad or not available():
        return x if x.layout is torch.strided else x.to_dense()
    found = torch.zeros(x.shape, dtype=x.dtype)
    parts = (part.numpy() for part in (x.values(), x.col_indices(), x.crow_indices()))
    kernels.gather_rows(*parts, np.arange(len(x)), found.numpy())
    return found


def log_of_counts(x: Tensor) -> Tensor:
    """Log(1 + x) of dense or CSR counts.

    1 + x is exact for counts, so that on a CPU `log`, the simpler function, is as right as `log1p`.
    """
    if x.device.type != "cpu" or x.layout is not torch.strided:
        return torch.log1p(x)
    by_loop = x.dtype is torch.float32 and not x.requires_grad and available()
    if not by_loop or torch.compiler.is_compiling():
        return (x + 1).log()
    x = x.contiguous()
    found = torch.empty_like(x)
    kernels.log_of_counts(x.view(-1).numpy(), found.view(-1).numpy())
    return found


def row_sums(x: Tensor) -> Tensor:
    """Sum over the genes of dense or CSR counts, `[n, 1]`."""
    if x.layout is torch.strided:
        return x.sum(1, keepdim=True)
    return x @ x.values().new_ones(x.shape[1], 1)

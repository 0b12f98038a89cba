"""Evaluation in passes whose tensors stay in the processor's cache."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass
from torch import Tensor

from scmixvi.singlecell._loops.counts import dense
from scmixvi.singlecell._parts.encoders import can_stack

# Elements of one likelihood tensor that an evaluation pass may hold: 64 MB in float32 on a GPU;
# on a CPU 8 MB, which its cache holds and its allocator keeps for the next pass.
_ELEMENTS_A_PASS, _ELEMENTS_A_PASS_ON_CPU = 2**24, 2**21
# Elements of one matrix of counts on a CPU: its terms are computed once for all draws of a pass.
_COUNTS_A_PASS_ON_CPU = 2**15
# Cells that are encoded at once where only that is asked; the result does not depend on it.
CELLS_A_PASS = 1024
# Share of counts that are not zero from which on a dense product is faster than a sparse one.
_DENSE = 0.15


def cells_in_passes(tensors: dict[str, Any], x: Tensor) -> Iterator[dict[str, Any]]:
    """Split a minibatch with counts x `[n, G]` into near equal ones for one pass each.

    A GPU takes the minibatch whole.
    """
    n_cells, n_genes = x.shape
    at_most = n_cells if x.device.type != "cpu" else max(1, _COUNTS_A_PASS_ON_CPU // n_genes)
    n_passes = -(-n_cells // at_most)
    if n_passes <= 1:
        yield tensors
        return
    for rows in torch.arange(n_cells).tensor_split(n_passes):
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


def reads_sparse(module: BaseModuleClass) -> bool:
    """Whether to load the counts of cells to encode as sparse tensors.

    Counts stay sparse where the first layer of all encoders is one product with nothing but them,
    so that neither zeros are written nor their products computed.
    """
    only_counts = module.use_observed_lib_size and not module.encode_covariates
    sparse = module.device.type == "cpu" and only_counts and can_stack(module.z_encoders)
    if sparse:
        _let_torch_warn()
    return sparse


@cache
def _let_torch_warn() -> None:
    """Have torch say unheard what it says of the first CSR tensor of a process.

    That they are in beta does not concern counts that are only multiplied, and a filter of warnings
    would be the user's as well.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def to_encode(tensors: dict[str, Any]) -> dict[str, Any]:
    """A minibatch whose counts are sparse only where that is faster."""
    x = tensors.get(REGISTRY_KEYS.X_KEY)
    if x is None or x.layout is torch.strided:
        return tensors
    few = x.layout is torch.sparse_csr and x.values().numel() < _DENSE * x.numel()
    return tensors if few else {**tensors, REGISTRY_KEYS.X_KEY: dense(x)}

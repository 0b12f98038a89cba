"""Dropout whose units are drawn by a compiled loop on a CPU.

What is compiled stands in this file and in :mod:`scmixvi.singlecell._loops.random`, as in
:mod:`scmixvi.singlecell._loops.kernels`.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scmixvi.singlecell._loops.compiled import available, compiled
from scmixvi.singlecell._loops.random import STEP, random_bits

_u, _f = np.uint64, np.float32


@compiled()
def _draw(seed, lost, kept, out):
    """Flat `out`: 0 where 32 random bits, half of a state's, are below `lost`, else `kept`."""
    half = (out.shape[0] + 1) // 2
    low, high = out[:half], out[half:]
    for i in range(half):
        z = random_bits(_u(seed) + _u(i) * STEP)
        low[i] = _f(0) if np.uint32(z) < lost else kept
        if i < high.shape[0]:
            high[i] = _f(0) if np.uint32(z >> _u(32)) < lost else kept


def kept_units(like: Tensor, rate: float) -> Tensor:
    """What dropout multiplies units by: 0 with probability `rate`, else 1 / (1 - rate).

    Parameters
    ----------
    like
        Units; what is returned has their shape, type and device.
    rate
        From 0 to 1.
    """
    like, lost = like.detach(), round(rate * 2**32)
    by_loop = like.device.type == "cpu" and like.dtype is torch.float32 and 0 < lost < 2**32
    if torch.compiler.is_compiling() or not (by_loop and available()):
        return functional.dropout(torch.ones_like(like), rate)
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    seed = int(torch.randint(2**62, ()))
    _draw(seed, np.uint32(lost), _f(1 / (1 - rate)), out.view(-1).numpy())
    return out


def dropped(layer: nn.Dropout, hidden: Tensor) -> Tensor:
    """Apply a dropout layer."""
    at_once = layer.training and layer.p > 0 and hidden.device.type == "cpu"
    if torch.compiler.is_compiling() or not at_once:
        return layer(hidden)
    return hidden * kept_units(hidden, layer.p)

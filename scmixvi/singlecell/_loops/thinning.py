"""Cells of which encoders see a random share of the counts: noise for training.

What is compiled stands in this file, in :mod:`scmixvi.singlecell._loops.team` and in
:mod:`scmixvi.singlecell._loops.random`, as in :mod:`scmixvi.singlecell._loops.kernels`.
"""

import numpy as np
import torch
from torch import Tensor

from scmixvi.singlecell._loops.compiled import available, compiled, thread_entry
from scmixvi.singlecell._loops.counts import dense
from scmixvi.singlecell._loops.random import STEP, random_bits
from scmixvi.singlecell._loops.team import HEAD, array_at, in_parallel, next_rows

N_TABLED = 16  # counts that one random number draws, by a table
N_BY_TABLE = 64  # up to so many, nearly all, are drawn so, in parts
MANY = 32  # so many expected to be kept, and to be lost, are normal

_u, _float = np.uint64, np.float64
_LOW = np.uint64(0xFFFFFFFF)


@compiled()
def _fill(table, pmf, share):
    """Row n: where the distribution function of Binomial(n, share) is, in steps of 2^-32."""
    pmf[:] = 0
    pmf[0] = 1
    for n in range(1, N_TABLED + 1):
        for m in range(n, 0, -1):
            pmf[m] = pmf[m] * (1 - share) + pmf[m - 1] * share
        pmf[0] *= 1 - share
        below = 0.0
        for m in range(N_TABLED):
            below += pmf[m]
            table[n, m] = np.uint32(min(below * 2.0**32, 2.0**32 - 1)) if m < n else _LOW


@compiled()
def _rarely(count, share, uniform):
    """Binomial(count, share) by inversion, for a share of at most 1/2 and few expected."""
    found = 0
    term = below = np.exp(count * np.log1p(-share))
    while uniform > below and found < count:
        found += 1
        term *= (count - found + 1) / found * share / (1 - share)
        below += term
    return found


@compiled()
def _thin(x, kept, seed, out, start, stop):
    """Of rows start to stop: Binomial(x, kept) / kept into out; what is not whole of x stays.

    Every row has random numbers of its own, whichever thread draws them.
    """
    table = np.empty((N_TABLED + 1, N_TABLED), np.uint32)
    pmf = np.empty(N_TABLED + 1)
    for i in range(start, stop):
        state = random_bits(_u(seed) + _u(i))
        share = _float(kept[i])
        _fill(table, pmf, share)
        rare = min(share, 1 - share)
        for j in range(x.shape[1]):
            count = np.floor(x[i, j])
            found = 0
            left = np.int64(count)
            while 0 < left and count <= N_BY_TABLE:
                state += STEP
                drawn = np.uint32(random_bits(state) >> _u(32))
                row = table[min(left, N_TABLED)]
                for m in range(N_TABLED):
                    found += drawn > row[m]
                left -= N_TABLED
            if left > 0:
                state += STEP
                z = random_bits(state)
                if count * rare <= MANY:
                    found = _rarely(count, rare, (z >> _u(11)) * 2.0**-53)
                    if rare < share:
                        found = np.int64(count) - found
                else:
                    radius = np.sqrt(-2 * np.log(((z >> _u(32)) + 0.5) / 2.0**32))
                    normal = radius * np.cos(2 * np.pi * ((z & _LOW) / 2.0**32))
                    spread = np.sqrt(count * share * (1 - share))
                    found = np.int64(np.floor(count * share + spread * normal + 0.5))
                    found = max(0, min(found, np.int64(count)))
            out[i, j] = found / share + (x[i, j] - count)


@thread_entry
def _thin_entry(address):
    """What :func:`thinned` hands over, into arrays."""
    n_rows, n_genes, seed, x, kept, out = array_at(address, HEAD + 6, np.int64)[HEAD:]
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        _thin(
            array_at(x, (n_rows, n_genes), np.float32),
            array_at(kept, n_rows, np.float32),
            seed,
            array_at(out, (n_rows, n_genes), np.float32),
            start,
            stop,
        )


def by_torch(x: Tensor, kept: Tensor) -> Tensor:
    """Binomial(x, kept) / kept `[n, G]` with torch's draws, on any device."""
    kept, whole = kept.unsqueeze(1), x.float().floor()
    # Of NaN torch would draw for ever.
    left = torch.binomial(whole.nan_to_num(0.0), kept.expand_as(x).contiguous())
    return (left / kept + (x - whole)).to(x.dtype)


def thinned(x: Tensor, rate: float) -> Tensor:
    r"""Counts `[n, G]` of which every cell has lost a share of its own, scaled up to their depth.

    .. math:: \tilde x_g = \mathrm{Binomial}(x_g, 1 - r) / (1 - r), \quad r \sim U(0, \text{rate})

    so that each is x on average. What a count is above a whole number stays as it is. Where the
    loop is compiled, genes that keep more than 32 counts on average, and lose more than 32, are
    drawn by the normal approximation.
    """
    x = dense(x)  # sparse where latents are asked for in the middle of a training
    if not x.is_floating_point():
        x = x.float()
    kept = 1 - rate * torch.rand(len(x), device=x.device, dtype=torch.float32)
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    if not on_cpu or torch.compiler.is_compiling() or not available():
        return by_torch(x, kept)
    seed = torch.randint(2**62, ()).item()
    x, out = x.detach().contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    addresses = [t.data_ptr() for t in (x, kept, out)]
    in_parallel(_thin_entry, len(x), [*x.shape, seed, *addresses])
    return out

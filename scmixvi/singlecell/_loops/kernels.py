r"""Compiled loops of the count likelihood: one pass over every row of K*B rows by G genes.

A row's work stands in tiles that stay in the first-level cache, and what a tile needs stands in
one array at fixed distances, so that the compiler needs no test for overlap and uses vectors.
`exp` and `log` are polynomials in float32 (after Cephes; relative error below 2e-7).

With a = -pi and b = a - theta log(1 + v), the zero-inflated likelihood of
:mod:`scmixvi.singlecell._parts.likelihoods` is, with softplus(t) = max(t, 0) + log(1 + exp(-|t|)),

.. math::
    \log ZINB(0) = \mathrm{softplus}(b) - \mathrm{softplus}(a), \qquad
    \log ZINB(x) = b - \mathrm{softplus}(a) + x \log\frac{v + \epsilon'}{1 + v} + c(x, \theta)

where no term overflows. Rows that hold what is not a number give a value that is not finite.

All that is compiled stands in this file, but for what :mod:`scmixvi.singlecell._loops.team` says of
threads: numba keeps what it compiles until the file of the caller changes, whatever becomes of a
function that it calls in another.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scmixvi.singlecell._loops.compiled import compiled, thread_entry
from scmixvi.singlecell._loops.team import HEAD, array_at, in_parallel, next_rows

TILE = 256  # genes
N_TABLED = 64  # counts below this come from a table; in single-cell data that is 99 % of them
SPARSE = 4  # a cell of which less than one count in so many is not zero is looked up by these alone

_f, _i = np.float32, np.int32
_EPS = np.float32(1e-8)  # scvi.distributions adds it inside every logarithm
_ROWS_OF_CELL, _ROWS_OF_WORK = 7, 6


@compiled()
def _exp(x):
    x = max(min(x, _f(88.0)), _f(-87.0))
    n = np.floor(x * _f(1.4426950408889634) + _f(0.5))
    r = x - n * _f(0.693359375)
    r = r + n * _f(2.12194440e-4)
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    p = p * r * r + r + _f(1)
    return p * _i((_i(n) + _i(127)) << _i(23)).view(_f)


@compiled()
def _log(x):
    bits = _f(x).view(_i)
    e = _i(_i(bits - _i(0x3F3504F3)) >> _i(23))
    m = _i(bits - _i(e << _i(23))).view(_f) - _f(1)
    p = _f(7.0376836292e-2)
    p = p * m - _f(1.1514610310e-1)
    p = p * m + _f(1.1676998740e-1)
    p = p * m - _f(1.2420140846e-1)
    p = p * m + _f(1.4249322787e-1)
    p = p * m - _f(1.6668057665e-1)
    p = p * m + _f(2.0000714765e-1)
    p = p * m - _f(2.4999993993e-1)
    p = p * m + _f(3.3333331174e-1)
    square, exponent = m * m, _f(e)
    p = p * m * square - exponent * _f(2.12194440e-4) - _f(0.5) * square
    return m + p + exponent * _f(0.693359375)


@compiled("reassoc")
def _total(row):
    total = _f(0)
    for g in range(row.shape[0]):
        total += row[g]
    return total


@compiled()
def _load(row, bias, sign, out):
    for i in range(row.shape[0]):
        out[i] = sign * (row[i] + bias[i])


@compiled()
def _exponentials(work, top):
    """The softmax's numerators in place of its logits."""
    for i in range(TILE):
        work[i] = _exp(work[i] - top)


@compiled()
def _maxima(work, lanes):
    for i in range(TILE):
        lanes[i] = max(lanes[i], work[i])


@compiled()
def _zinb(cell, work, mean):
    """Value, and slopes in log mu, pi and theta, of one tile."""
    for i in range(TILE):
        theta, inverse, x = cell[i], cell[TILE + i], cell[5 * TILE + i]
        v = work[i] * mean * inverse
        u = _f(1) + v
        shrink = _f(1) / u
        log1p = _log(u) + (v - (u - _f(1))) * shrink
        floored = v + cell[2 * TILE + i]
        a = work[TILE + i]
        b = a - theta * log1p
        exp_a, exp_b = _exp(-abs(a)), _exp(-abs(b))
        one_a, one_b = _f(1) + exp_a, _f(1) + exp_b
        over = _f(1) / (one_a * one_b)
        over_a, over_b = over * one_b, over * one_a
        share_a = over_a if a > _f(0) else exp_a * over_a
        share_b = over_b if b > _f(0) else exp_b * over_b
        zero = x == _f(0)
        share = share_b if zero else _f(1)
        largest = max(b, _f(0)) if zero else b
        work[5 * TILE + i] = (one_b if zero else _f(1)) * over_a
        weight = share * theta
        value = largest - max(a, _f(0)) + x * (_log(floored) - log1p)
        work[4 * TILE + i] = value + _f(0) * (a + b)
        work[2 * TILE + i] = v * shrink * (x * theta * inverse / floored - weight)
        work[TILE + i] = share_a - share
        slope = inverse * shrink * (weight * v - x) - share * log1p
        work[3 * TILE + i] = slope + cell[6 * TILE + i]


@compiled()
def _log_of_product(ratios):
    """Sum of the logarithms of a tile of numbers from 1/2 to 2, 16 of them in one logarithm."""
    half = TILE // 2
    while half >= TILE // 16:
        low, high = ratios[:half], ratios[half : 2 * half]
        for i in range(half):
            low[i] *= high[i]
        half //= 2
    for i in range(TILE // 16):
        ratios[i] = _log(ratios[i])
    return _total(ratios[: TILE // 16])


@compiled()
def _nb(cell, work, mean):
    """As `_zinb` without inflation."""
    for i in range(TILE):
        theta, inverse, x = cell[i], cell[TILE + i], cell[5 * TILE + i]
        v = work[i] * mean * inverse
        u = _f(1) + v
        shrink = _f(1) / u
        log1p = _log(u) + (v - (u - _f(1))) * shrink
        floored = v + cell[2 * TILE + i]
        gone = theta * log1p
        work[4 * TILE + i] = x * (_log(floored) - log1p) - gone + _f(0) * gone
        work[2 * TILE + i] = v * shrink * (x * theta * inverse / floored - theta)
        slope = inverse * shrink * (theta * v - x) - log1p
        work[3 * TILE + i] = slope + cell[6 * TILE + i]


@compiled()
def _store_mean(row, work, offset):
    for i in range(row.shape[0]):
        row[i] = work[2 * TILE + i] - work[i] * offset


@compiled()
def _copy(source, out):
    for i in range(out.shape[0]):
        out[i] = source[i]


@compiled()
def _of_genes(theta, bias, logit_bias, inflated, cells):
    """theta, 1 / (theta + eps), eps / (theta + eps) and the biases into the tiles of `cell`."""
    for g in range(theta.shape[0]):
        cell, i = cells[g // TILE], g % TILE
        inverse = _f(1) / (theta[g] + _EPS)
        cell[i], cell[TILE + i], cell[2 * TILE + i] = theta[g], inverse, _EPS * inverse
        cell[3 * TILE + i] = bias[g]
        if inflated:
            cell[4 * TILE + i] = logit_bias[g]


@compiled()
def gather_rows(data, indices, indptr, rows, out):
    """Rows of a CSR matrix into zeros; entries that are stored twice are added."""
    if rows.max() >= len(indptr) - 1:
        raise IndexError("row index out of range")
    for i in range(len(rows)):
        for j in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, indices[j]] += _f(data[j])


@compiled()
def largest_count(x):
    """The largest of x (flat); -1 if any is not a count: negative, fractional, not a number."""
    lanes, wrong = np.zeros(64, _f), np.zeros(64, _i)
    n = x.shape[0] // 64 * 64
    for start in range(0, n, 64):
        block = x[start : start + 64]
        for i in range(64):
            value = block[i]
            lanes[i] = max(lanes[i], value)
            wrong[i] |= _i(not (value >= _f(0) and np.floor(value) == value))
    for i in range(n, x.shape[0]):
        lanes[0] = max(lanes[0], x[i])
        wrong[0] |= _i(not (x[i] >= _f(0) and np.floor(x[i]) == x[i]))
    return _f(-1) if wrong.any() else lanes.max()


@compiled()
def log_of_counts(x, out):
    """Log(1 + x) of counts (flat); not a number where x is not finite, or not above -1."""
    for i in range(x.shape[0]):
        out[i] = _log(_f(1) + x[i]) + _f(0) * x[i] if x[i] > _f(-1) else _f(np.nan)


@compiled()
def _log_gamma(z):
    """Stirling's series, in float64, from z = 63 on exact to rounding."""
    return (z - 0.5) * np.log(z) - z + (1 / 12 - 1 / (360 * z * z)) / z


@compiled()
def _digamma(z):
    square = 1 / (z * z)
    return np.log(z) - 0.5 / z - square * (1 / 12 - square / 120)


@compiled()
def _tables(theta, size):
    """sum_{k < x} log((theta + k) / (k + 1)) for x below `size`, and its slope in theta."""
    value, slope = np.zeros((size, theta.shape[0]), _f), np.zeros((size, theta.shape[0]), _f)
    for k in range(1, size):
        row, before, over = value[k], value[k - 1], _f(1) / _f(k)
        for g in range(theta.shape[0]):
            row[g] = before[g] + _log((theta[g] + _f(k - 1)) * over)
        row, before = slope[k], slope[k - 1]
        for g in range(theta.shape[0]):
            row[g] = before[g] + _f(1) / (theta[g] + _f(k - 1))
    return value, slope


@compiled()
def _beyond(x, last, places):
    """Write down the places of what is above `last`; return how many there are."""
    n_found = 0
    for first in range(0, x.shape[0], 64):
        block = x[first : first + 64]
        n_here = _i(0)
        for i in range(block.shape[0]):
            n_here += _i(block[i] > last)
        for i in range(block.shape[0] if n_here > 0 else 0):
            places[n_found] = first + i
            n_found += _i(block[i] > last)
    return n_found


@compiled()
def _largest(lanes):
    """The largest number of a tile, which is changed."""
    half = TILE // 2
    while half >= 16:
        low, high = lanes[:half], lanes[half : 2 * half]
        for i in range(half):
            low[i] = max(low[i], high[i])
        half //= 2
    return lanes[:16].max()


@compiled()
def constant_of(theta, x, table, slope_table, value, slope, places):
    """Log Gamma(x + theta) / Gamma(theta) / x!, and its slopes in theta.

    For one cell: theta, x, value and slope `[G]`, tables from `_tables`; `places` `[G + 1]` is
    room for the genes that are looked at one by one.
    """
    n_genes, last = x.shape[0], _i(table.shape[0] - 1)
    values, slopes = table.ravel(), slope_table.ravel()
    n_positive = _i(0)
    for g in range(n_genes):
        n_positive += _i(x[g] > _f(0))
    if n_positive * SPARSE < n_genes:
        n_found = 0
        for g in range(n_genes):
            places[n_found] = g
            n_found += _i(x[g] > _f(0))
        value[:], slope[:] = _f(0), _f(0)
        for g in places[:n_found]:
            entry = _i(min(x[g], _f(last))) * n_genes + g
            value[g], slope[g] = values[entry], slopes[entry]
    else:
        for g in range(n_genes):
            entry = _i(min(x[g], _f(last))) * n_genes + g
            value[g], slope[g] = values[entry], slopes[entry]
    for g in places[: _beyond(x, _f(last), places)]:
        wide, shape = np.float64(x[g]), np.float64(theta[g])
        more = _log_gamma(wide + shape) - _log_gamma(shape + last)
        value[g] += _f(more - _log_gamma(wide + 1) + _log_gamma(np.float64(last + 1)))
        slope[g] += _f(_digamma(wide + shape) - _digamma(shape + last))


@compiled()
def _score_cells(
    scores,
    bias,
    logits,
    logit_bias,
    inflated,
    theta,
    library,
    x,
    constant,
    constant_slope,
    table,
    slope_table,
    value,
    library_slope,
    theta_slope,
    keep,
    start,
    stop,
):
    """Cells `start` to `stop` of :func:`score`; the constants come from tables if there are any."""
    n_rows, _, n_genes = scores.shape
    n_tiles = (n_genes + TILE - 1) // TILE
    cells = np.ones((n_tiles, _ROWS_OF_CELL * TILE), _f)
    works = np.empty((n_tiles, _ROWS_OF_WORK * TILE), _f)
    cells[:, 5 * TILE :] = _f(0)
    lanes, values, slopes = np.empty(TILE, _f), np.empty(n_genes, _f), np.empty(n_genes, _f)
    places = np.empty(n_genes + 1, _i)
    for b in range(start, stop):
        theta_b = theta[b if theta.shape[0] > 1 else 0]
        if b == start or theta.shape[0] > 1:
            _of_genes(theta_b, bias, logit_bias, inflated, cells)
        if table.shape[0] > 0:
            constant_of(theta_b, x[b], table, slope_table, values, slopes, places)
            same = _total(values)
        else:
            same = constant[b]
            _copy(constant_slope[b], slopes)
        for t in range(n_tiles):
            first, last = t * TILE, min((t + 1) * TILE, n_genes)
            _copy(x[b, first:], cells[t, 5 * TILE : 5 * TILE + last - first])
            _copy(slopes[first:], cells[t, 6 * TILE : 6 * TILE + last - first])
        for k in range(n_rows):
            lanes[:] = -_f(np.inf)
            for t in range(n_tiles):
                first, last = t * TILE, min((t + 1) * TILE, n_genes)
                cell, work = cells[t], works[t]
                work[last - first : TILE] = -_f(np.inf)
                _load(scores[k, b, first:last], cell[3 * TILE :], _f(1), work)
                _maxima(work, lanes)
                if inflated:
                    work[TILE + last - first : 2 * TILE] = _f(0)
                    _load(logits[k, b, first:last], cell[4 * TILE :], _f(-1), work[TILE:])
            top, total = _largest(lanes), _f(0)
            for t in range(n_tiles):
                _exponentials(works[t], top)
                total += _total(works[t, :TILE])
            norm, total = _f(1) / total, same
            for t in range(n_tiles):
                if inflated:
                    _zinb(cells[t], works[t], norm * library[k, b])
                else:
                    _nb(cells[t], works[t], norm * library[k, b])
                total += _total(works[t, 4 * TILE : 5 * TILE])
                if inflated:
                    total += _log_of_product(works[t, 5 * TILE :])
            value[k, b] = total
            if not keep:
                continue
            slope = _f(0)
            for t in range(n_tiles):
                slope += _total(works[t, 2 * TILE : 3 * TILE])
            library_slope[k, b] = slope
            for t in range(n_tiles):
                first, last = t * TILE, min((t + 1) * TILE, n_genes)
                _store_mean(scores[k, b, first:last], works[t], norm * slope)
                _copy(works[t, 3 * TILE :], theta_slope[k, b, first:last])
                if inflated:
                    _copy(works[t, TILE:], logits[k, b, first:last])


@thread_entry
def _score_entry(address):
    """What :func:`score` hands over, into arrays."""
    block = array_at(address, HEAD + 18, np.int64)[HEAD:]
    n_rows, n_cells, n_genes, n_thetas, n_tabled, keep = block[:6]
    at = block[6:]
    by_row, by_cell, all_ = (n_rows, n_cells), (n_cells, n_genes), (n_rows, n_cells, n_genes)
    theta = array_at(at[4], (n_thetas, n_genes), np.float32)
    # Every thread has its own: another's would be read across the processors' caches.
    table, slope_table = _tables(theta[0], n_tabled)
    while True:
        start, stop = next_rows(address)
        if start >= stop:
            return
        _score_cells(
            array_at(at[0], all_, np.float32),
            array_at(at[1], n_genes, np.float32),
            array_at(at[2], all_, np.float32),
            array_at(at[3], n_genes, np.float32),
            at[2] != 0,
            theta,
            array_at(at[5], by_row, np.float32),
            array_at(at[6], by_cell, np.float32),
            array_at(at[7], n_cells, np.float32),
            array_at(at[8], by_cell, np.float32),
            table,
            slope_table,
            array_at(at[9], by_row, np.float32),
            array_at(at[10], by_row, np.float32),
            array_at(at[11], all_, np.float32),
            keep != 0,
            start,
            stop,
        )


class Scored(NamedTuple):
    """Log-likelihood `[K, B]` and its slopes in the log library `[K, B]` and theta `[K, B, G]`."""

    value: Tensor
    library_slope: Tensor
    theta_slope: Tensor | None


def score(
    scores: Tensor,
    bias: Tensor,
    logits: Tensor | None,
    logit_bias: Tensor | None,
    theta: Tensor,
    library: Tensor,
    x: Tensor,
    largest: float,
    keep: bool,
) -> Scored:
    """Log-likelihood of cells, on all threads; its slopes replace what it came from.

    Parameters
    ----------
    scores, logits
        The heads' products before their biases, `[K, B, G]`: the mean is `library` times
        softmax(scores + bias). No logits is no inflation. With `keep` the likelihood's slopes
        are in their place afterwards.
    bias, logit_bias
        `[G]`.
    theta
        Inverse dispersion, `[1, G]` or `[B, G]`.
    library
        `[K, B]`, not its logarithm.
    x
        Counts up to `largest`, `[B, G]`.
    largest
        Of all counts.
    keep
        Whether slopes are wanted.
    """
    value, library_slope = torch.empty_like(library), torch.empty_like(library)
    theta_slope = torch.empty_like(scores) if keep else None
    constant = constant_slope = None
    n_tabled = int(min(largest + 1, N_TABLED)) if len(theta) == 1 else 0
    if len(theta) > 1:
        wide = theta.detach()
        constant = torch.lgamma(x + wide) - torch.lgamma(wide) - torch.lgamma(x + 1)
        constant = constant.sum(-1)
        constant_slope = torch.digamma(x + wide) - torch.digamma(wide)
    used = (
        *(scores, bias, logits, logit_bias, theta, library, x, constant, constant_slope),
        *(value, library_slope, theta_slope),
    )
    used = [None if t is None else t.detach().contiguous() for t in used]
    sizes = *scores.shape, len(theta), n_tabled, int(keep)
    addresses = [0 if t is None else t.data_ptr() for t in used]
    in_parallel(_score_entry, len(x), [*sizes, *addresses])
    return Scored(value, library_slope, theta_slope)

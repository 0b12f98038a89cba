"""Sparse counts times weights: torch's products, whichever loop computes them."""

import pytest
import torch
from torch.nn import functional

from scmixvi.core import products
from scmixvi.singlecell._loops import sparse as _sparse
from scmixvi.singlecell._loops.compiled import available

compiled = pytest.mark.skipif(not available(), reason="numba does not compile")


@pytest.fixture
def calls(monkeypatch):
    """Take the loop for the faster one whatever the processor, and count its products."""
    made, product = [], _sparse._product
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(_sparse, "_product", lambda *args: made.append(args) or product(*args))
    return made


def counts(n_cells=11, n_genes=30):
    """Row i has i entries: none, and every number left over by the loop's four at a time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(n_cells, n_genes)
    for i in range(n_cells):
        x[i, torch.randperm(n_genes, generator=generator)[:i]] = 1.0 + torch.arange(i)
    return x


def csr(x, dtype=torch.int64):
    found = x.to_sparse_csr()
    indptr, indices = found.crow_indices().to(dtype), found.col_indices().to(dtype)
    return torch.sparse_csr_tensor(indptr, indices, found.values(), x.shape)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("n_out", [1, _sparse.WIDTH, _sparse.WIDTH + 3])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_equals_the_dense_product(calls, n_threads, dtype, n_out, with_bias):
    generator = torch.Generator().manual_seed(1)
    x, weight = counts(), torch.randn(n_out, 30, generator=generator)
    bias = torch.randn(n_out, generator=generator) if with_bias else None
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = _sparse.linear(csr(x, dtype), weight, bias)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, functional.linear(x, weight, bias), rtol=1e-5, atol=1e-4)
    assert len(calls) == 1


@compiled
@torch.no_grad()
def test_turned_weights_and_no_cells(calls):
    weight = torch.randn(30, 4).T
    x = counts()
    torch.testing.assert_close(_sparse.linear(csr(x), weight), x @ weight.T)
    assert _sparse.linear(csr(x[:0]), weight).shape == (0, 4)
    assert len(calls) == 2


def test_torch_multiplies_what_does_not_suit(calls, monkeypatch):
    x, weight = counts(), torch.randn(4, 30, requires_grad=True)
    _sparse.linear(csr(x), weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, -1))
    with torch.no_grad():
        _sparse.linear(x, weight)
        _sparse.linear(csr(x.double()), weight.double())
        monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
        _sparse.linear(csr(x), weight)
    assert not calls

"""Counts of any layout: with their zeros, and their logarithms."""

import pytest
import torch

from scmixvi.singlecell._loops import counts as _counts


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo, torch.strided])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_counts_of_any_layout(monkeypatch, compiled, layout, dtype):
    monkeypatch.setattr(_counts, "available", lambda: compiled)
    counts = torch.tensor([[0, 2, 0], [0, 0, 0], [5, 0, 1]], dtype=dtype)
    sparse = counts if layout is torch.strided else counts.to_sparse(layout=layout)
    assert torch.equal(_counts.dense(sparse), counts)


def test_dense_counts_that_are_stored_twice_are_added_as_torch_does():
    parts = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([1, 1, 0], dtype=torch.int32)
    twice = torch.sparse_csr_tensor(*parts, torch.tensor([2.0, 3.0, 1.0]), (1, 3))
    assert torch.equal(_counts.dense(twice), torch.tensor([[1.0, 5.0, 0.0]]))
    assert torch.equal(twice.to_dense(), _counts.dense(twice))


@pytest.mark.parametrize("compiled", [True, False])
def test_logarithms_of_counts(monkeypatch, compiled):
    monkeypatch.setattr(_counts, "available", lambda: compiled)
    x = torch.cat([torch.arange(300.0), torch.tensor([1e4, 1e6, 2.0**24 - 2])]).view(3, -1)
    found = _counts.log_of_counts(x)
    torch.testing.assert_close(found.double(), torch.log1p(x.double()), rtol=2e-7, atol=0)
    turned = _counts.log_of_counts(x.T)
    torch.testing.assert_close(turned, found.T, rtol=0, atol=0)
    wrong = torch.tensor([torch.nan, -2.0])
    assert _counts.log_of_counts(wrong).isnan().all()

"""Evaluation in passes, and on sparse counts, changes no figure."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from counts import QUIET, make_adata
from scmixvi.singlecell._loops import counts as _counts
from scmixvi.singlecell._parts import passes as _passes
from scmixvi.singlecell._queries.posteriors import Posteriors


@pytest.fixture
def sparse_adata():
    """Counts of which some 7 % are not zero."""
    adata = make_adata(n_cells=50)
    keep = np.random.default_rng(0).random(adata.shape) < 0.04
    keep[:, 0] = True
    adata.X = csr_matrix(adata.X.multiply(keep))
    adata.X.eliminate_zeros()
    assert adata.X.nnz < 0.09 * np.prod(adata.shape)
    return adata


def minibatch(n_cells, n_genes=23):
    x = torch.arange(n_cells * n_genes).float().reshape(n_cells, n_genes)
    return {"X": x, "batch": torch.arange(n_cells).unsqueeze(1), "nothing": None, "one": x[0]}


@pytest.mark.parametrize("n_cells", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("counts", [1, 23, 50, 10_000])
def test_passes_are_the_minibatch_in_order(monkeypatch, n_cells, counts):
    monkeypatch.setattr(_passes, "_COUNTS_A_PASS_ON_CPU", counts)
    tensors = minibatch(n_cells)
    parts = list(_passes.cells_in_passes(tensors, tensors["X"]))
    for name in ("X", "batch"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), tensors[name])
    sizes = [len(part["X"]) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * 23 <= max(counts, 23)
    assert all(part["nothing"] is None for part in parts)


@pytest.mark.parametrize("weights", ["uniform", "amortized"])
def test_log_p_x_does_not_depend_on_the_passes(make_model, first_batch, monkeypatch, weights):
    """With draws that are the component means, passes of any size give the same numbers."""
    model = make_model(n_components=3, mixture_weights=weights, batch_key="batch")
    model.train(1, **QUIET)
    batch = first_batch(model, 60)
    monkeypatch.setattr(torch, "randn", lambda *shape, **k: torch.zeros(*shape, **k))
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: torch.zeros(shape, dtype=dtype, device=device),
    )
    whole = model.module.marginal_ll(batch, 12)
    monkeypatch.setattr(_passes, "_COUNTS_A_PASS_ON_CPU", 100)
    monkeypatch.setattr(_passes, "_ELEMENTS_A_PASS_ON_CPU", 700)
    assert len(list(_passes.cells_in_passes(batch, batch["X"]))) == 15
    torch.testing.assert_close(model.module.marginal_ll(batch, 12), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("batch_key", [None, "batch"])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"encode_covariates": True}, {"n_layers": 2}, {"encoder_sharing": "trunk"}],
    ids=str,
)
def test_sparse_counts_give_the_same_posteriors(
    make_model, sparse_adata, n_components, batch_key, kwargs
):
    model = make_model(data=sparse_adata, n_components=n_components, batch_key=batch_key, **kwargs)
    model.train(1, **QUIET)
    for arguments in ({}, {"representation": "params"}, {"return_dist": True}):
        found = model.get_latent_representation(**arguments)
        dense = model.get_latent_representation(**arguments, load_sparse_tensor=False, batch_size=7)
        np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-6)
    stock = super(Posteriors, model).get_latent_representation(return_dist=True)
    np.testing.assert_allclose(found, stock, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("sharing", ["separate", "trunk"])
def test_sparse_counts_stay_sparse(make_model, sparse_adata, monkeypatch, n_components, sharing):
    model = make_model(data=sparse_adata, n_components=n_components, encoder_sharing=sharing)
    model.train(1, **QUIET)
    layouts, encode = [], model.module._encode

    def noted(x, *args):
        layouts.append(x.layout)
        return encode(x, *args)

    monkeypatch.setattr(model.module, "_encode", noted)
    model.get_latent_representation()
    assert set(layouts) == {torch.sparse_csr}


@pytest.mark.parametrize("nonzero", [0.02, 0.14, 0.16, 1.0])
def test_products_stay_sparse_only_where_few_counts_are_not_zero(nonzero):
    x = torch.zeros(50, 10)
    x.view(-1)[: int(nonzero * x.numel())] = 1
    layout = _passes.to_encode({"X": x.to_sparse_csr()})["X"].layout
    assert layout is (torch.sparse_csr if nonzero < 0.15 else torch.strided)


def test_sparse_counts_have_the_same_sums(sparse_adata):
    sparse = torch.from_numpy(sparse_adata.X.toarray()).to_sparse_csr()
    dense = torch.from_numpy(make_adata().X.toarray()).to_sparse_csr()
    assert _passes.to_encode({"X": dense})["X"].layout is torch.strided
    for x in (sparse, dense):
        torch.testing.assert_close(_counts.row_sums(x), _counts.row_sums(x.to_dense()))
    assert _passes.to_encode({"qzm": dense}) == {"qzm": dense}


def test_what_torch_says_of_sparse_tensors_is_not_heard(recwarn):
    """It says so once a process, unless it is told to say it always."""
    torch.set_warn_always(True)
    try:
        _passes._let_torch_warn.__wrapped__()
        assert not recwarn
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
        assert recwarn, "nothing was filtered"
    finally:
        torch.set_warn_always(False)

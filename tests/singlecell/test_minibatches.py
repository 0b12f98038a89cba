"""Minibatches gathered from memory are scvi-tools' own, in the same order."""

import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData
from scipy import sparse

from scmixvi import MixtureSCVI
from scmixvi.singlecell._training import minibatches as _minibatches

N_CELLS, N_GENES = 23, 7


def annotated(kind):
    generator = np.random.default_rng(0)
    counts = generator.poisson(0.7, (N_CELLS, N_GENES)).astype(np.float32)
    make = {
        "csr": sparse.csr_matrix,
        "csr float64": lambda x: sparse.csr_matrix(x.astype(float)),
        "csr int64": lambda x: sparse.csr_matrix(x.astype(int)),
        "csr long double": lambda x: sparse.csr_matrix(x.astype(np.longdouble)),
        "csc": sparse.csc_matrix,
        "dense": np.asarray,
    }[kind]
    adata = AnnData(make(counts))
    adata.obs["batch"] = [f"b{i % 3}" for i in range(N_CELLS)]
    adata.obs["age"] = generator.normal(size=N_CELLS)
    adata.obs["donor"] = [f"d{i % 4}" for i in range(N_CELLS)]
    return adata


def loaders(adata, **kwargs):
    MixtureSCVI.setup_anndata(
        adata,
        batch_key="batch",
        continuous_covariate_keys=["age"],
        categorical_covariate_keys=["donor"],
    )
    manager = MixtureSCVI(adata, n_components=1).adata_manager
    return [
        cls(manager, batch_size=5, **kwargs)
        for cls in (scvi.dataloaders.AnnDataLoader, _minibatches.InMemoryLoader)
    ]


def assert_same_batches(stock, ours):
    batches = []
    for loader in (stock, ours):
        torch.manual_seed(3)
        batches.append(list(loader))
    assert len(batches[0]) == len(batches[1])
    for expected, found in zip(*batches, strict=True):
        assert list(expected) == list(found)
        for key in expected:
            assert expected[key].dtype == found[key].dtype
            assert torch.equal(expected[key], found[key])


@pytest.mark.parametrize(
    ("kind", "gathered"),
    [
        ("csr", True),
        ("csr float64", True),
        ("csr int64", True),
        ("dense", True),
        pytest.param(
            *("csr long double", False),
            marks=pytest.mark.skipif(
                np.dtype(np.longdouble).itemsize == 8, reason="a long double is a double here"
            ),
        ),
        ("csc", False),
    ],
)
def test_batches_are_scvi_s(kind, gathered):
    indices = np.arange(N_CELLS)[::-1][:-2]
    stock, ours = loaders(annotated(kind), shuffle=True, indices=indices)
    assert isinstance(ours.dataset.dataset, _minibatches._Gathered) == gathered
    assert_same_batches(stock, ours)


def test_entries_that_are_stored_twice_are_added():
    adata = annotated("csr")
    twice = sparse.vstack([adata.X[:-1], sparse.csr_matrix((1, N_GENES), dtype=np.float32)])
    twice = sparse.csr_matrix(twice)
    last = slice(twice.indptr[-1], None)
    adata.X = sparse.csr_matrix(
        (
            np.r_[twice.data[: last.start], np.float32([1, 2, 4])],
            np.r_[twice.indices[: last.start], [3, 3, 5]],
            np.r_[twice.indptr[:-1], twice.indptr[-1] + 3],
        ),
        shape=twice.shape,
    )
    stock, ours = loaders(adata)
    assert list(ours)[-1]["X"][-1].tolist() == [0, 0, 0, 3, 0, 4, 0]
    assert_same_batches(stock, ours)


def test_backed_data_are_left_to_scvi(tmp_path):
    import anndata

    annotated("csr").write_h5ad(tmp_path / "counts.h5ad")
    adata = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    scvi.model.SCVI.setup_anndata(adata)
    loader = _minibatches.InMemoryLoader(scvi.model.SCVI(adata).adata_manager)
    assert type(loader.dataset.dataset._source) is scvi.data.AnnTorchDataset


def test_sparse_tensors_are_left_to_scvi():
    loader = loaders(annotated("csr"), load_sparse_tensor=True)[1]
    assert type(loader.dataset.dataset) is scvi.data.AnnTorchDataset


def test_training_uses_it_and_ends_where_scvi_s_loader_does(monkeypatch):
    def trained():
        scvi.settings.seed = 0
        adata = annotated("csr")
        MixtureSCVI.setup_anndata(adata, batch_key="batch")
        model = MixtureSCVI(adata, n_components=2, n_hidden=8)
        model.train(max_epochs=2, batch_size=8, latent_key=None, enable_progress_bar=False)
        return model.history["train_loss"].to_numpy()

    gathered = []
    rows = _minibatches._rows
    monkeypatch.setattr(_minibatches, "_rows", lambda *a: gathered.append(1) or rows(*a))
    ours = trained()
    assert gathered
    monkeypatch.setattr(_minibatches, "available", lambda: False)
    assert np.array_equal(ours, trained())


def test_only_numbers_that_numba_has_are_gathered():
    """On a CPU it has no halves."""
    halves, singles = (np.dtype(name) for name in ("float16", "float32"))
    assert not _minibatches._can_compile(halves)
    assert _minibatches._can_compile(singles)

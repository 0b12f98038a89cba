"""The counts are the counts: whole numbers, known sums, labels kept."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scvi
from scipy.sparse import csr_matrix, issparse

from scmixvi import datasets


def assert_raw_counts(adata, total):
    assert isinstance(adata.X, csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.X.data.min() >= 1
    assert adata.X.data.astype(np.int64).sum() == total
    assert (adata.X.sum(axis=1) > 0).all()


@pytest.fixture(scope="module")
def pbmc():
    return datasets.pbmc68k()


def test_pbmc68k_counts(pbmc):
    assert pbmc.shape == (700, 765)
    assert_raw_counts(pbmc, 486_651)
    assert list(pbmc.var_names[:2]) == ["HES4", "TNFRSF4"]


@pytest.mark.filterwarnings("ignore")
def test_pbmc68k_is_the_exact_inverse_of_its_normalisation(pbmc):
    """Normalising the recovered counts gives back what scanpy bundles."""
    reduced = sc.datasets.pbmc68k_reduced()
    size = reduced.obs["n_counts"].to_numpy()[:, None]
    again = np.log1p(pbmc.X.toarray() / size * 1e4)
    np.testing.assert_allclose(again, reduced.raw.X.toarray(), rtol=2e-3)
    unrounded = np.expm1(reduced.raw.X.toarray().astype(np.float64)) * size / 1e4
    assert np.abs(unrounded - pbmc.X.toarray()).max() < 0.09
    assert (pbmc.X.sum(axis=1).A1 <= size[:, 0]).all(), "765 genes cannot exceed all genes"


def test_pbmc68k_labels(pbmc):
    counts = pbmc.obs["bulk_labels"].value_counts()
    assert len(counts) == 10
    assert counts["Dendritic"] == 240
    assert counts["CD14+ Monocyte"] == 129
    assert {"louvain", "phase", "n_counts"} <= set(pbmc.obs)


def test_cortex(data_dir):
    adata = datasets.cortex()
    assert adata.shape == (3005, 1200)
    assert_raw_counts(adata, 23_121_076)
    assert adata.obs["cell_type"].value_counts()["pyramidal CA1"] == 939
    everything = datasets.cortex(n_top_genes=None)
    assert everything.shape == (3005, 4172)
    assert_raw_counts(everything, 33_806_383)
    variance = everything.X.toarray().astype(np.float64).var(axis=0)
    kept = everything.var_names.isin(adata.var_names)
    assert variance[kept].min() >= variance[~kept].max()


def test_cortex_refuses_an_impossible_number_of_genes(data_dir):
    for n_top_genes in (0, 4173, 2.5, True, "all"):
        with pytest.raises(ValueError, match="between 1 and the 4172 genes"):
            datasets.cortex(n_top_genes)


def test_sc_mixology(data_dir):
    adata = datasets.sc_mixology()
    assert adata.shape == (1408, 11_533)
    assert_raw_counts(adata, 37_332_578)
    assert adata.obs["cell_type"].value_counts()["A549"] == 328
    assert adata.obs["batch"].nunique() == 5


def test_cortex_is_downloaded_where_there_is_no_file(monkeypatch, tmp_path):
    """scvi-tools' downloader returns a dense matrix of whole numbers."""
    counts = np.array([[5, 0, 1, 7], [0, 0, 1, 2], [9, 3, 0, 0]])
    obs = pd.DataFrame({"cell_type": ["a", "b", "a"]}, index=["x", "y", "z"])
    asked = []

    def fake(save_path):
        asked.append(save_path)
        return ad.AnnData(counts.astype(np.int32), obs=obs)

    monkeypatch.setattr(scvi.data, "cortex", fake)
    monkeypatch.setenv(datasets.DATA_DIR_VARIABLE, str(tmp_path / "nowhere"))
    adata = datasets.cortex(n_top_genes=2, save_path=tmp_path)
    assert asked == [str(tmp_path)]
    assert issparse(adata.X)
    np.testing.assert_array_equal(adata.X.toarray(), counts[:, [0, 3]])
    assert list(adata.obs["cell_type"]) == ["a", "b", "a"]


def test_sc_mixology_says_what_to_do(monkeypatch):
    monkeypatch.delenv(datasets.DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match="set SCMIXVI_DATA_DIR to the folder"):
        datasets.sc_mixology()

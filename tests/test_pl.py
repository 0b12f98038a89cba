"""Plots: the right numbers in the right panels, scanpy's manners, clear errors."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

from scmixvi import pl

mpl.use("agg")


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["a", "b", "b", "a", "c"]),
            "posterior_diversity": [0.1, 0.5, 0.2, 1.1, 0.9],
        },
        index=[f"cell {i}" for i in range(5)],
    )
    return AnnData(np.ones((5, 2)), obs=obs, obsm={"X_umap": rng.normal(size=(5, 2))})


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def drawn(axes):
    """Points and their values, in the order of their x coordinate."""
    points = axes.collections[0]
    order = np.argsort(points.get_offsets()[:, 0])
    return np.asarray(points.get_offsets())[order], np.asarray(points.get_array())[order]


def test_diversity_is_drawn_where_the_cells_are(adata):
    axes = pl.posterior_diversity(adata, show=False)
    points, values = drawn(axes)
    order = np.argsort(adata.obsm["X_umap"][:, 0])
    np.testing.assert_allclose(points, adata.obsm["X_umap"][order])
    np.testing.assert_allclose(values, adata.obs["posterior_diversity"].to_numpy()[order])
    assert axes.collections[0].get_clim() == (0, 1.1)
    assert "nats" in axes.get_title()


def test_labels_come_first(adata):
    left, right = pl.posterior_diversity(adata, color="cell_type", show=False)
    assert left.get_title() == "cell_type"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["a", "b", "c"]
    assert drawn(right)[1].max() == 1.1


def test_own_axes_own_key_and_a_file(adata, tmp_path):
    adata.obs["jsd"] = adata.obs["posterior_diversity"] * 2
    _, axes = plt.subplots()
    path = tmp_path / "diversity.png"
    assert pl.posterior_diversity(adata, key="jsd", ax=axes, show=False, save=path) is axes
    assert drawn(axes)[1].max() == 2.2
    assert plt.imread(path).std() > 0


@pytest.fixture
def autoshow():
    """scanpy's setting, put back afterwards (it cannot be deleted, as monkeypatch would)."""
    before = sc.settings.autoshow
    yield lambda value: setattr(sc.settings, "autoshow", value)
    sc.settings.autoshow = before


def test_show_follows_scanpy(adata, monkeypatch, autoshow):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    autoshow(False)
    assert pl.posterior_diversity(adata, show=True) is None
    assert pl.posterior_diversity(adata) is not None
    autoshow(True)
    assert pl.posterior_diversity(adata) is None
    assert pl.posterior_diversity(adata, show=False) is not None
    assert len(shown) == 2


def test_errors_say_what_to_do(adata):
    with pytest.raises(KeyError, match="get_posterior_diversity"):
        pl.posterior_diversity(adata, key="missing")
    with pytest.raises(KeyError, match="X_tsne"):
        pl.posterior_diversity(adata, basis="tsne")
    _, axes = plt.subplots()
    with pytest.raises(ValueError, match="either ax"):
        pl.posterior_diversity(adata, color="cell_type", ax=axes)

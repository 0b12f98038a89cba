"""The integration experiment: its measures on cases with known answers, and its smoke form."""

import json
import math
from argparse import Namespace

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.distributions import Normal

from counts import make_adata
from scmixvi import MixtureSCVI
from scmixvi.experiments import integration
from scmixvi.experiments._cells import biology
from scmixvi.experiments._cells import methods as _methods
from scmixvi.experiments._cells import training as _singlecell


def test_genes_are_called_as_long_as_the_expected_share_of_errors_allows():
    # errors 0, 0.1, 0.2, 0.9; running means 0, 0.05, 0.1, 0.3
    probability = np.array([0.8, 1.0, 0.1, 0.9])
    found = [biology.called(probability, level).mean() for level in (0.0, 0.06, 0.11, 0.31)]
    assert found == [0.25, 0.5, 0.75, 1.0]


def test_rank_agreement_of_equal_reversed_and_shifted_changes():
    changes = np.arange(20.0).reshape(2, 10)
    assert biology.rank_agreement(changes, 2 * changes + 1, 3) == {
        "de_spearman": 1.0,
        "de_top_overlap": 1.0,
    }
    found = biology.rank_agreement(changes, changes[:, ::-1], 6)
    assert found == {"de_spearman": -1.0, "de_top_overlap": pytest.approx(2 / 6, abs=1e-4)}


def test_auroc_counts_the_pairs_in_the_right_direction():
    assert biology.auroc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1
    assert biology.auroc(np.array([0.0, 2.0]), np.array([1.0, -1.0])) == 0.25


def test_altered_cells_are_sums_of_two_types_of_one_batch_and_thinned_cells():
    adata = make_adata(80, n_genes=400)
    rng = np.random.default_rng(0)
    found = biology.altered_cells(adata, "cell_type", "batch", rng)
    total = adata.X.sum(1).A1
    doublets = found["doublet"]
    assert doublets.n_obs == 80
    partners = doublets.X - adata.X
    types, batches = adata.obs["cell_type"].to_numpy(), adata.obs["batch"].to_numpy()
    known = {tuple(row): i for i, row in enumerate(adata.X.toarray())}
    for i, partner in enumerate(partners.toarray()):
        j = known[tuple(partner)]
        assert types[i] != types[j]
        assert batches[i] == batches[j] == doublets.obs["batch"].iloc[i]
    half = found["doublet, thinned"].X
    assert (half.toarray() <= doublets.X.toarray()).all()
    assert half.sum() / doublets.X.sum() == pytest.approx(0.5, abs=0.01)
    assert found["thinned"].X.sum() / total.sum() == pytest.approx(0.2, abs=0.01)


def test_a_cell_that_loses_all_its_counts_is_left_out():
    counts = csr_matrix(np.array([[1000.0, 0.0], [1.0, 0.0]], np.float32))
    cells = ad.AnnData(counts)
    cells.obs["t"] = ["a", "b"]
    found = biology.altered_cells(cells, "t", "none", np.random.default_rng(0))
    assert found["thinned"].n_obs == 1
    assert found["doublet"].n_obs == 2


@pytest.fixture(scope="module")
def mixture():
    _singlecell.quiet()
    adata = make_adata(60)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    model = MixtureSCVI(adata, n_components=2)
    model.train(2, enable_progress_bar=False)
    return model


def test_ambiguity_is_the_entropy_variance_and_diversity_of_the_posterior(mixture):
    cells = ad.AnnData(mixture.adata.X, obs=mixture.adata.obs, var=mixture.adata.var)
    found = biology.ambiguity([mixture], cells, 2000)
    _, variance = mixture.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(found["variance"], variance.sum(1), rtol=1e-4)
    diversity = mixture.get_posterior_diversity(n_samples=2000)
    np.testing.assert_allclose(found["JSD"], diversity, atol=0.06)
    # H(mixture) = mean of the components' entropies + JSD
    scale = np.sqrt(mixture.get_latent_representation(representation="params")[:, 20:])
    entropies = Normal(0, torch.from_numpy(scale)).entropy().reshape(-1, 2, 10).sum(-1).mean(1)
    np.testing.assert_allclose(found["entropy"], entropies + found["JSD"], atol=0.3)
    assert found["JSD"].max() <= math.log(2) + 0.05
    np.testing.assert_array_equal(found["total count"], cells.X.sum(1).A1)


def test_scvis_entropy_is_a_gaussians(mixture):
    single = mixture.to_scvi(0)
    cells = ad.AnnData(mixture.adata.X, obs=mixture.adata.obs, var=mixture.adata.var)
    found = biology.ambiguity([single], cells, 4000)
    _, variance = single.get_latent_representation(return_dist=True)
    exact = Normal(0, torch.from_numpy(np.sqrt(variance))).entropy().sum(-1)
    np.testing.assert_allclose(found["entropy"], exact, atol=0.25)
    assert "JSD" not in found


def test_null_splits_and_fold_changes_have_the_genes_of_the_model(mixture):
    found = biology.null_calls(mixture, "cell_type", 2, seed=0)
    assert set(found) == {"0.05", "0.1", "0.2", "median", "p95", "largest"}
    assert all(len(v) == 2 and 0 <= min(v) <= max(v) <= 1 for v in found.values())
    assert all(m < p < g for m, p, g in zip(*list(found.values())[3:], strict=True))
    weighted = biology.null_calls(mixture, "cell_type", 2, 0, "importance")
    assert weighted["median"] != found["median"]
    changes = biology.fold_changes(mixture, "cell_type")
    assert changes.shape == (3, 23)
    table = mixture.differential_expression(groupby="cell_type", mode="change", silent=True)
    of_b = table[table["group1"] == "b"]["lfc_mean"][mixture.adata.var_names]
    np.testing.assert_allclose(changes[1], of_b, atol=0.2)


def smoke(path, seed):
    integration.main(["--smoke", "--seed", str(seed), "--result", str(path)])
    return json.loads(path.read_text())["runs"]


def test_smoke_run_compares_seeds_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(integration, "has_scib", lambda: False)
    path = tmp_path / "integration.json"
    smoke(path, 0)
    runs = smoke(path, 1)
    assert not any("/scores/" in key for key in runs), "scib-metrics was not there"
    assert runs["pbmc68k/pca/against=0/seed=1"]["ari"] > 0.8, "PCA depends on no seed"
    assert -1 <= runs["pbmc68k/mixture/against=0/seed=1"]["de_spearman"] <= 1
    assert "pbmc68k/mixture/against=0/seed=0" not in runs
    thinned = runs["pbmc68k/mixture/ambiguous/seed=0"]["thinned"]
    assert thinned["total count"] < 0.2, "thinned cells have fewer counts"
    capsys.readouterr()
    smoke(path, 1)
    assert capsys.readouterr().out == ""
    path.with_suffix(".smoke").joinpath("pbmc68k,pca,outcome,seed=0.pt").unlink()
    runs = smoke(path, 2)
    assert "pbmc68k/pca/against=1/seed=2" in runs
    assert "pbmc68k/pca/against=0/seed=2" not in runs
    assert "pbmc68k/pca: the file of seed 0's clusters is gone" in capsys.readouterr().out


def test_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(integration, "has_scib", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[experiments\]"'):
        integration.main(["--result", str(tmp_path / "x.json")])


def test_scib_scores_tell_types_apart_and_batches_mixed():
    pytest.importorskip("scib_metrics")
    adata = make_adata(150)
    rng = np.random.default_rng(0)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    good = np.eye(3)[types] * 8 + rng.normal(size=(150, 3))
    bad = np.eye(3)[adata.obs["batch"].cat.codes] * 8 + rng.normal(size=(150, 3))
    good, bad = (biology.scib_scores(adata, x, "cell_type", "batch") for x in (good, bad))
    assert good["Bio conservation"] > bad["Bio conservation"] + 0.2
    assert good["Batch correction"] > bad["Batch correction"] + 0.2
    assert good["Total"] == pytest.approx(
        0.6 * good["Bio conservation"] + 0.4 * good["Batch correction"], abs=2e-4
    )


def test_without_a_number_of_epochs_models_train_for_the_default_of_scvi_tools(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(_methods, "get_max_epochs_heuristic", lambda n_cells: n_cells // 20)
    adata = make_adata(60)
    arguments = Namespace(seed=0, smoke=False, result=tmp_path / "integration.json")
    methods = _methods.Methods(arguments, "data", adata, integration.PAPER)
    assert len(methods("scvi").held_out) == 6
    kept = torch.load(next(tmp_path.rglob("*.pt")), weights_only=True)
    assert kept["n_epochs"] == 3

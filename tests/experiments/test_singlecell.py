"""What the single-cell experiments stand on: splits, ensembles, held-out bounds, scores."""

import math
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from counts import make_adata
from scmixvi import MixtureSCVI
from scmixvi.experiments._cells import scores as _scores
from scmixvi.experiments._cells import training as singlecell
from scmixvi.singlecell import MixtureVAE

QUICK = singlecell.Training(batch_size=16, max_epochs=2, patience=2)


@pytest.fixture(scope="module")
def adata():
    singlecell.quiet()
    adata = make_adata(60)
    MixtureSCVI.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def split():
    return singlecell.random_split(60, 36, 8, seed=0)


@pytest.fixture(scope="module")
def base(adata, split):
    torch.manual_seed(0)
    return singlecell.train_mixture(adata, split, QUICK, 1)["state"]


@pytest.fixture(scope="module")
def member(adata, split, base):
    torch.manual_seed(1)
    return singlecell.train_member(adata, split, QUICK, base)["state"]


def test_split_is_a_partition_that_the_seed_decides(split):
    assert [len(part) for part in split] == [36, 8, 16]
    assert sorted(np.concatenate(split)) == list(range(60))
    again, other = (singlecell.random_split(60, 36, 8, seed=s) for s in (0, 1))
    assert (again.test == split.test).all()
    assert (other.test != split.test).any()


def test_members_are_trained_against_a_decoder_that_stays(base, member):
    moved = {name for name in base if not torch.equal(base[name], member[name])}
    assert moved
    assert all(name.startswith("z_encoder.") for name in moved)
    assert "z_encoder.mean_encoder.weight" in moved


def test_a_member_is_optimised_and_not_only_drawn(adata, split, base, member):
    """The encoder that a member starts from is not the one it ends with."""
    torch.manual_seed(1)
    start = singlecell.papers_model(adata, 1).module.state_dict()
    name = "z_encoder.mean_encoder.weight"
    assert (start[name] - member[name]).abs().max() > 1e-4


def test_ensembles_are_nested_and_share_the_decoder(adata, base, member):
    two, three = singlecell.ensemble(base, [member]), singlecell.ensemble(base, [member, base])
    for name, value in two.items():
        assert torch.equal(three[name], value)
    model = singlecell.papers_model(adata, 3, three)
    params = model.get_latent_representation(representation="components")
    single = singlecell.papers_model(adata, 1, base).get_latent_representation()
    np.testing.assert_allclose(params[:, :10], single, atol=1e-6)
    np.testing.assert_allclose(params[:, 20:], single, atol=1e-6)
    assert np.abs(params[:, 10:20] - single).max() > 1e-2


def test_bounds_agree_with_the_models_own_and_are_ordered(adata, split, base, member):
    model = singlecell.papers_model(adata, 2, singlecell.ensemble(base, [member]))
    torch.manual_seed(0)
    found = singlecell.bounds(model, split.test, 600)
    torch.manual_seed(0)
    pooled = float(model.get_marginal_ll(indices=split.test, n_mc_samples=600))
    elbo = np.mean([float(model.get_elbo(indices=split.test)) for _ in range(300)])
    assert found["log_likelihood"] == pytest.approx(pooled, abs=0.15)
    assert found["miselbo"] == pytest.approx(elbo, abs=0.15)
    assert found["miselbo"] < found["log_likelihood_eq17"] < found["log_likelihood"]
    assert found["gap"] == pytest.approx(found["log_likelihood"] - found["miselbo"])
    jsd = model.get_posterior_diversity(indices=split.test, n_samples=600).mean()
    assert found["jsd"] == pytest.approx(jsd, abs=0.02)
    assert 0 < found["jsd"] <= math.log(2)


def test_one_component_has_no_diversity_and_one_logarithm(adata, split, base, monkeypatch):
    """And several passes give what one gives, but for the draws."""
    monkeypatch.setattr(singlecell, "MAX_ELEMENTS", 16 * 23 * 7)
    found = singlecell.bounds(singlecell.papers_model(adata, 1, base), split.test, 20)
    assert found["jsd"] == 0
    assert found["log_likelihood_eq17"] == pytest.approx(found["log_likelihood"], abs=1e-4)


def test_passes_of_a_few_draws_are_all_the_draws_each_once(adata, base, monkeypatch):
    model = singlecell.papers_model(adata, 1, base)
    batch = next(iter(model._make_data_loader(adata=adata, indices=range(16), batch_size=16)))
    monkeypatch.setattr(singlecell, "MAX_ELEMENTS", 16 * 23 * 3)
    with torch.inference_mode():
        log_lik, log_prior, log_q_all = singlecell._log_terms(model.module, batch, 7)
    assert log_lik.shape == log_prior.shape == (7, 1, 16)
    assert log_q_all.shape == (7, 1, 1, 16)
    assert len(log_prior.unique(dim=0)) == 7


def test_every_step_of_the_papers_training_has_the_whole_kl(adata, split, base, monkeypatch):
    weights, loss = [], MixtureVAE.loss

    @wraps(loss)
    def spy(*arguments, kl_weight=1.0, **keywords):
        weights.append(float(kl_weight))
        return loss(*arguments, kl_weight=kl_weight, **keywords)

    monkeypatch.setattr(MixtureVAE, "loss", spy)
    long = replace(QUICK, max_epochs=8)  # MixtureSCVI warms up in a quarter of the epochs
    singlecell.train_mixture(adata, split, long, 2)
    singlecell.train_member(adata, split, long, base)
    assert len(weights) > 8
    assert set(weights) == {1.0}


def test_stock_scvi_becomes_a_mixture_of_one(adata, split):
    weights = singlecell.train_stock(adata, split, max_epochs=2)
    model = singlecell.stock_model(adata, weights["state"])
    assert weights["n_epochs"] == 2
    assert model.module.n_components == 1
    assert any("running_mean" in name for name in weights["state"]), "stock has batch norm"


def test_scores_of_separate_and_of_meaningless_features():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 40)
    apart = np.eye(3)[np.repeat([0, 1, 2], 40)] * 9 + rng.normal(size=(120, 3))
    found = _scores.repeated_scores(lambda: apart, labels, 90, 4, rng)
    assert found == {"svm": 1.0, "ari": 1.0, "nmi": pytest.approx(1.0)}
    noise = rng.normal(size=(120, 3))
    found = _scores.repeated_scores(lambda: noise, labels, 90, 20, rng)
    assert found["svm"] == pytest.approx(1 / 3, abs=0.12)
    assert abs(found["ari"]) < 0.05


def test_the_classifier_is_fitted_on_some_cells_and_scored_on_the_others():
    """A label that only the scored cells have can never be predicted."""
    labels = np.array(["a", "b"] * 20 + ["c"] * 40)
    train, test = np.eye(80)[:40], np.eye(80)[40:]
    assert _scores.train_to_test(train, labels[:40], test, labels[40:]) == 0


def test_principal_components_of_few_features_are_a_rotation():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    test = rng.normal(size=(20, 4))
    first, second = _scores.principal_components(train, test, 4, scale=True)
    scaled = (test - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(second @ second.T, scaled @ scaled.T, atol=1e-8)
    labels = (train[:, 0] > 0).astype(int)
    plain = LinearSVC(C=0.025, tol=1e-8, random_state=0, max_iter=10_000)
    turned = plain.fit(first, labels).decision_function(second)
    unturned = plain.fit((train - train.mean(0)) / train.std(0), labels).decision_function(scaled)
    np.testing.assert_allclose(turned, unturned, atol=1e-3)
    assert _scores.principal_components(train, test, 2, scale=False)[1].shape == (20, 2)

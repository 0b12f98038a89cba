"""The variational gap of every cell: log p(x) whatever the encoder, and KL(q || p) below it."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._queries import evidence as _evidence
from scmixvi.singlecell._queries.evidence import START_STEPS, evidence, started, variational_gaps


def trained(n_components=2, n_epochs=15, **kwargs):
    adata = make_adata(60)
    MixtureSCVI.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(0)
    model = MixtureSCVI(adata, n_components=n_components, n_hidden=16, n_latent=2, **kwargs)
    model.train(n_epochs, latent_key=None, **QUIET)
    return model


CELLS = np.arange(0, 60, 6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"n_components": 1},
        {"mixture_weights": "amortized"},
        {"mixture_weights": [0.8, 0.2], "gene_likelihood": "nb"},
        {"latent_distribution": "ln"},
        {"use_observed_lib_size": False, "n_epochs": 300},
    ],
)
def test_the_gap_is_what_the_bound_leaves(kwargs):
    """Log p(x) is that of very many draws of refined posteriors, MISELBO that of many bounds."""
    model = trained(**kwargs)
    torch.manual_seed(1)
    found = model.get_variational_gap(indices=CELLS, progress=False)
    assert list(found.index) == list(model.adata.obs_names[CELLS])
    np.testing.assert_allclose(found["gap"], found["log_likelihood"] - found["miselbo"], atol=1e-4)
    many = model.get_marginal_ll(
        indices=CELLS, n_mc_samples=4000, return_mean=False, n_refinement_steps=100
    )
    np.testing.assert_allclose(found["log_likelihood"], many, atol=0.3)
    assert found["log_likelihood"].mean() == pytest.approx(many.numpy().mean(), abs=0.05)
    bounds = [model.get_elbo(indices=CELLS, batch_size=60) for _ in range(40)]
    error = max(0.06, float(np.std(bounds)) / 40**0.5)
    assert found["miselbo"].mean() == pytest.approx(np.mean(bounds), abs=4 * error)
    assert (found["gap"] > -0.05).all()
    assert (found["effective_share"] > 0.1).all()
    assert abs(found["still_rising"].mean()) < 0.05


def test_a_cells_proposal_starts_half_at_the_encoders_and_half_refined(first_batch, monkeypatch):
    model = trained(mixture_weights=[0.8, 0.2])
    module, batch = model.module, first_batch(model)
    steps = []

    def moved(module, tensors, n_steps, full_forward_pass):
        steps.append(n_steps)
        qz = module.inference(**module._get_inference_input(tensors, full_forward_pass))["qz"]
        return type(qz)(qz.c_loc + 1, 0.5 * qz.c_scale, qz.c_log_weights)

    monkeypatch.setattr(_evidence, "refined", moved)
    with torch.inference_mode():
        own, (_, half) = module._encoded_whole(batch)["qz"], started(module, batch)
        other = moved(module, batch, 0, True)
        u = own.sample((5,)) + 0.5
        expected = torch.logaddexp(own.log_prob(u), other.log_prob(u)) - np.log(2)
        torch.testing.assert_close(half.log_prob(u), expected)
    assert steps[0] == START_STEPS


def test_components_count_in_the_bound_by_their_weights(first_batch):
    """One of them is far from the posterior, so that its terms are many nats below the other's."""
    model = trained(n_epochs=1, mixture_weights=[0.9, 0.1])
    module, batch = model.module, first_batch(model)
    with torch.no_grad():
        module.z_encoder_1.mean_encoder.bias += 3.0
        draws = torch.stack([-module(batch)[2].loss for _ in range(200)])
        found = variational_gaps(module, batch, 400, n_rounds=1, n_draws=50, n_final=100)
    error = draws.std().item() / 200**0.5
    assert found["miselbo"].mean().item() == pytest.approx(draws.mean().item(), abs=6 * error)


def test_draws_for_the_bound_are_rounded_up_to_a_multiple_of_the_components(
    make_model, first_batch
):
    model = make_model(n_components=2)
    module, batch, found = model.module.eval(), first_batch(model), []
    for n_samples in (5, 6):
        torch.manual_seed(1)
        with torch.inference_mode():
            gaps = variational_gaps(module, batch, n_samples, n_rounds=1, n_draws=50, n_final=100)
        found.append(gaps["miselbo"])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_evidence_of_a_gaussian_needs_few_draws_and_more_would_add_little():
    """Log p(x, z) = log N(z; 1, 0.5^2 I) - 7, from an encoder that is somewhat off."""
    torch.manual_seed(0)
    target, encoder = Normal(1.0, 0.5), Normal(0.8, 0.6)

    def log_densities(z):
        return target.log_prob(z).sum(-1) - 7, encoder.log_prob(z).sum(-1)

    found = evidence(log_densities, lambda n: encoder.sample((n, 4, 2)), n_draws=200, n_final=3000)
    torch.testing.assert_close(
        found.log_likelihood.float(), torch.full((4,), -7.0), rtol=0, atol=0.1
    )
    assert ((found.effective > 0.7) & (found.effective <= 1)).all()
    assert ((found.still_rising > 0) & (found.still_rising < 0.01)).all(), "Jensen"


def test_the_encoders_draws_are_spread_over_all_tenths():
    """Most of them weigh nothing: if one tenth had them all, log p(x) would seem to rise still."""
    torch.manual_seed(0)
    target, encoder = Normal(1.0, 0.5), Normal(0.0, 3.0)

    def log_densities(z):
        return target.log_prob(z).sum(-1), encoder.log_prob(z).sum(-1)

    found = evidence(log_densities, lambda n: encoder.sample((n, 4, 2)), n_draws=400, n_final=2000)
    assert found.still_rising.abs().max() < 0.05


def test_adaptation_goes_on_until_every_input_has_enough():
    """One input's encoder is exact, the other's ten standard deviations of its target off."""
    torch.manual_seed(0)
    target = Normal(torch.tensor([0.0, 3.0]).reshape(2, 1), torch.tensor([1.0, 0.3]).reshape(2, 1))
    encoder = Normal(torch.zeros(2, 1), torch.ones(2, 1))

    def log_densities(z):
        return target.log_prob(z).sum(-1), encoder.log_prob(z).sum(-1)

    found = evidence(log_densities, lambda n: torch.randn(n, 2, 2), n_draws=200)
    assert (found.effective > 0.5).all()


def test_worse_encoders_have_a_wider_gap_below_the_same_evidence():
    """Means that are moved by 1 lie further from the exact posterior."""
    model = trained(n_components=1)
    torch.manual_seed(1)
    before = model.get_variational_gap(indices=CELLS, progress=False)
    with torch.no_grad():
        model.module.z_encoder.mean_encoder.bias += 1.0
    after = model.get_variational_gap(indices=CELLS, progress=False)
    np.testing.assert_allclose(after["log_likelihood"], before["log_likelihood"], atol=0.1)
    assert after["gap"].mean() > before["gap"].mean() + 0.5


def test_what_has_no_gap_is_refused():
    model = trained(n_epochs=1)
    with pytest.raises(ValueError, match="n_samples must be a whole number"):
        model.get_variational_gap(n_samples=0.5)
    with pytest.raises(ValueError, match="chooses no cell"):
        model.get_variational_gap(indices=[])
    model.minify_adata()
    with pytest.raises(ValueError, match="minified without counts"):
        model.get_variational_gap()


def test_a_mean_over_cells_is_pythons_number(make_model):
    model = make_model()
    model.train(1, latent_key=None, **QUIET)
    assert isinstance(model.get_marginal_ll(n_mc_samples=3), float)

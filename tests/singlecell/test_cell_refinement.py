"""Posteriors of each cell's own: closer to the exact one, the model as it was."""

import numpy as np
import pytest
import torch

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._parts import cell_refinement as _cell_refinement
from scmixvi.singlecell._parts import evaluation as _evaluation
from scmixvi.singlecell._parts import passes as _passes
from scmixvi.singlecell._parts.cell_refinement import refined
from scmixvi.singlecell._queries import posteriors as _posteriors

CELLS = np.arange(0, 60, 5)
WITH_COUNTS = "latent_posterior_parameters_with_counts"


@pytest.fixture
def trained(make_model):
    """Models whose encoders are off, as they are for cells that they have not seen."""

    def make(n_epochs=15, **settings):
        model = make_model(**({"batch_key": "batch", "n_components": 2} | settings))
        model.train(n_epochs, latent_key=None, **QUIET)
        with torch.no_grad():
            for encoder in model.module.z_encoders:
                encoder.mean_encoder.bias += 0.7
        return model

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_components": 1},
        {"mixture_weights": "amortized", "gene_likelihood": "nb"},
        {"mixture_weights": [0.8, 0.2], "latent_distribution": "ln"},
        {"encoder_sharing": "trunk", "n_components": 5, "gene_likelihood": "poisson"},
        {
            "dispersion": "gene-cell",
            "continuous_covariate_keys": ["age"],
            "encode_covariates": True,
        },
        {"size_factor_key": "size", "use_batch_norm": "none", "batch_representation": "embedding"},
    ],
    ids=str,
)
def test_every_cells_gap_shrinks_and_the_model_stays(trained, settings):
    model = trained(**settings)
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    asked = {"indices": CELLS, "progress": False, "n_samples": 2000}
    before = model.get_variational_gap(**asked)
    after = model.get_variational_gap(n_refinement_steps=100, **asked)
    assert (after["gap"] < before["gap"] + 0.1).all()
    assert after["gap"].mean() < 0.5 * before["gap"].mean()
    assert (after["gap"] > -0.1).all()
    np.testing.assert_allclose(
        after["log_likelihood"].mean(), before["log_likelihood"].mean(), atol=0.1
    )
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(p.requires_grad for p in model.module.parameters() if p.is_floating_point())


def test_a_known_posterior_is_found(trained):
    """With one latent the moments of the exact posterior are known by quadrature."""
    model = trained(n_latent=1, n_components=1)
    module = model.module
    (tensors,) = model._make_data_loader(adata=model.adata, indices=CELLS, batch_size=60)
    with torch.inference_mode():
        u = torch.linspace(-6, 6, 3001).reshape(-1, 1, 1).expand(-1, len(CELLS), 1)
        log_p = module._log_joint(tensors, module._encoded_whole(tensors), u)
    weights = log_p.softmax(0)
    mean = (weights * u[..., 0]).sum(0)
    variance = (weights * (u[..., 0] - mean).square()).sum(0)
    found = model.get_latent_representation(indices=CELLS, return_dist=True, n_refinement_steps=400)
    raw = model.get_latent_representation(indices=CELLS, return_dist=True)
    sd = variance.sqrt().numpy()
    off, at_first = (np.abs(part[0][:, 0] - mean.numpy()) / sd for part in (found, raw))
    assert off.max() < 0.35, "standard deviations"
    assert at_first.max() > 0.5
    np.testing.assert_allclose(found[1][:, 0], variance, rtol=0.4)


def test_draws_of_refined_posteriors_come_closer_to_log_p_and_not_above(trained):
    model = trained(n_components=2)
    asked = {"indices": CELLS, "return_mean": False}
    exact = model.get_marginal_ll(n_mc_samples=20_000, **asked).numpy()
    few = model.get_marginal_ll(n_mc_samples=10, **asked).numpy()
    refined = model.get_marginal_ll(n_mc_samples=10, n_refinement_steps=100, **asked).numpy()
    assert abs(refined.mean() - exact.mean()) < 0.5 * abs(few.mean() - exact.mean())
    assert refined.mean() < exact.mean() + 0.05


@pytest.mark.parametrize("n_cells_a_pass", [1, 5, 1000])
def test_cells_are_refined_together_and_decoded_in_passes(trained, monkeypatch, n_cells_a_pass):
    """Every cell is decoded with its own posterior, not another's."""
    model = trained()
    monkeypatch.setattr(_passes, "_COUNTS_A_PASS_ON_CPU", n_cells_a_pass * model.adata.n_vars)
    fitted, taken = [], []
    whole, decoded = _evaluation.refined, model.module._marginal_ll
    monkeypatch.setattr(_evaluation, "refined", lambda *a: fitted.append(whole(*a)) or fitted[-1])
    monkeypatch.setattr(
        model.module, "_marginal_ll", lambda *a: taken.append(a[1]["qz"]) or decoded(*a)
    )
    model.get_marginal_ll(indices=CELLS, n_mc_samples=20, n_refinement_steps=5)
    (qz,) = fitted
    assert len(taken) == -(-len(CELLS) // n_cells_a_pass)
    for name in ("c_loc", "c_scale", "c_log_weights"):
        parts = torch.cat([getattr(part, name) for part in taken])
        torch.testing.assert_close(parts, getattr(qz, name), rtol=0, atol=0)


@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
def test_every_form_of_the_latents(trained, latent_distribution):
    model = trained(latent_distribution=latent_distribution)
    refine = {"indices": CELLS, "n_refinement_steps": 20}
    n, (s, d) = len(CELLS), (2, 3)
    shapes = {"mean": (n, d), "components": (n, s * d), "params": (n, 2 * s * d)}
    for representation, shape in shapes.items():
        found = model.get_latent_representation(representation=representation, **refine)
        assert found.shape == shape
        raw = model.get_latent_representation(indices=CELLS, representation=representation)
        assert 0.01 < np.abs(found - raw).max() < 5
    draws = model.get_latent_representation(give_mean=False, **refine)
    assert draws.shape == (n, d)
    if latent_distribution == "ln":
        np.testing.assert_allclose(draws.sum(1), 1, rtol=1e-5)
        mean = model.get_latent_representation(**refine)
        np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-5)


def test_draws_are_of_the_refined_posterior(trained):
    """Of one cell many times: they have the refined mean and spread, not the encoders'."""
    model = trained(n_components=1)
    cell = {"indices": [7] * 300, "n_refinement_steps": 100, "batch_size": 300}
    draws = model.get_latent_representation(give_mean=False, **cell)
    mean, variance = (
        part.mean(0) for part in model.get_latent_representation(return_dist=True, **cell)
    )
    np.testing.assert_allclose(draws.mean(0), mean, atol=5 * np.sqrt(variance.max() / 300))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.5)


@pytest.mark.parametrize("weights", ["amortized", [0.98, 0.02]], ids=str)
def test_mixture_weights_are_the_encoders(trained, monkeypatch, weights):
    model = trained(mixture_weights=weights)
    fit, seen = _cell_refinement.fit_posterior, []

    def looked_at(posterior, parameters, *args):
        seen.append(posterior(*parameters).log_weights.exp().T)
        fit(posterior, parameters, *args)
        seen.append(posterior(*parameters).log_weights.exp().T)

    monkeypatch.setattr(_cell_refinement, "fit_posterior", looked_at)
    model.get_latent_representation(indices=CELLS, n_refinement_steps=2)
    expected = model.get_component_weights(indices=CELLS)
    for weights in seen:
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_a_query_models_frozen_weights_stay_frozen_and_modes_come_back(trained):
    reference = trained(batch_key="batch", encode_covariates=True)
    query_data = make_adata(20, seed=3)
    query_data.obs["batch"] = "new"
    MixtureSCVI.prepare_query_anndata(query_data, reference)
    query = MixtureSCVI.load_query_data(query_data, reference)
    query.is_trained_ = True
    flags = [p.requires_grad for p in query.module.parameters()]
    assert True in flags
    assert False in flags
    query.module.train()
    modes = [part.training for part in query.module.modules()]
    state = {name: value.clone() for name, value in query.module.state_dict().items()}
    with torch.inference_mode():
        encoded = query.module.z_encoder.training
        refined(query.module, next(iter(query._make_data_loader(query.adata))), 3)
    assert encoded
    assert [p.requires_grad for p in query.module.parameters()] == flags
    assert [part.training for part in query.module.modules()] == modes
    for name, value in query.module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_minify_looks_at_its_arguments_before_it_refines(trained, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it refined")

    monkeypatch.setattr(_posteriors, "refined", never)
    with pytest.raises(NotImplementedError, match=r"minified_data_type must be one of.*'other'"):
        trained().minify_adata("other", n_refinement_steps=5)
    with pytest.raises(ValueError, match="needs observed library sizes"):
        trained(use_observed_lib_size=False).minify_adata(n_refinement_steps=5)


def test_latent_library_sizes_are_refined_too(trained):
    """From the sum of the counts, however far off an encoder puts them."""
    model = trained(use_observed_lib_size=False)
    module = model.module
    (tensors,) = model._make_data_loader(adata=model.adata, indices=CELLS, batch_size=60)

    def bound(n_steps):
        with torch.inference_mode():
            encoded = module._encoded_whole(tensors, n_steps)
            ((log_ratio, _),) = module._log_ratios(tensors, encoded, 500, 1000)
        return log_ratio.mean((0, 1)), encoded

    encoders, _ = bound(0)
    refined, _ = bound(100)
    assert refined.mean() > encoders.mean() + 0.3
    with torch.no_grad():
        module.l_encoder.mean_encoder.bias -= 1.0
    (off, _), (found, encoded) = bound(0), bound(100)
    assert off.mean() < encoders.mean() - 5
    torch.testing.assert_close(found, refined, rtol=0, atol=0.3)
    assert encoded["qz"].c_loc.shape == (len(CELLS), 2, 3)
    assert encoded["ql"].loc.shape == (len(CELLS), 1)


@pytest.mark.parametrize("kind", ["latent_posterior_parameters", WITH_COUNTS])
def test_minified_data_hold_what_was_refined(trained, kind):
    """From then on latents and expression are those of the refined posteriors."""
    model = trained()
    raw = model.get_latent_representation()
    torch.manual_seed(1)
    found = model.get_latent_representation(representation="params", n_refinement_steps=100)
    torch.manual_seed(1)
    model.minify_adata(kind, n_refinement_steps=100)
    stored = model.get_latent_representation(representation="params")
    np.testing.assert_allclose(stored, found, rtol=1e-4, atol=1e-5)
    assert np.abs(model.get_latent_representation() - raw).max() > 0.05
    assert model.get_normalized_expression(indices=CELLS).shape == (len(CELLS), 23)
    if kind == WITH_COUNTS:
        again = model.get_latent_representation(representation="components", n_refinement_steps=1)
        assert np.abs(again - stored[:, :6]).max() < 0.07, "it starts from what is stored"
        module = model.module
        (tensors,) = model._make_data_loader(adata=model.adata, indices=CELLS, batch_size=60)
        stored_means = torch.as_tensor(stored[CELLS, :6]).reshape(len(CELLS), 2, 3)
        torch.testing.assert_close(module._encoded(tensors)["qz"].c_loc, stored_means)
        assert (module._encoded_whole(tensors)["qz"].c_loc - stored_means).abs().max() > 0.05
    else:
        with pytest.raises(ValueError, match=r"minified without counts.*n_refinement_steps"):
            model.get_latent_representation(n_refinement_steps=5)
        with pytest.raises(ValueError, match="minified without counts"):
            model.minify_adata(n_refinement_steps=5)


def test_what_starts_at_the_encoders_does_whatever_is_stored(trained, first_batch):
    """Bounds of the components, and a refinement that is told to."""
    model = trained(n_epochs=1)

    def found():
        batch = first_batch(model)
        torch.manual_seed(1)
        bounds = model.module.component_bounds(batch)
        return bounds, refined(model.module, batch, 2, full_forward_pass=True).c_loc

    before = found()
    model.minify_adata(WITH_COUNTS, n_refinement_steps=30, progress=False)
    torch.testing.assert_close(found(), before)


def test_other_data_sparse_minibatches_and_dataloaders(trained):
    model = trained(batch_key=None)
    other = make_adata(20, seed=3)
    found = model.get_latent_representation(other, n_refinement_steps=10)
    assert found.shape == (20, 3)
    assert np.isfinite(found).all()

    def refined(**arguments):
        torch.manual_seed(0)
        return model.get_latent_representation(n_refinement_steps=10, **arguments)

    dense = refined(indices=CELLS)
    np.testing.assert_allclose(refined(indices=CELLS, load_sparse_tensor=True), dense, atol=1e-5)
    loader = model._make_data_loader(adata=model.adata, indices=CELLS, batch_size=60)
    np.testing.assert_allclose(refined(dataloader=loader), dense, atol=1e-5)


def test_cells_are_refined_some_at_a_time(trained, monkeypatch):
    """In passes of two cells the optima are the same."""
    model = trained(n_components=1)
    cells = {"indices": CELLS[:4], "return_dist": True, "n_refinement_steps": 150}
    whole, variance = model.get_latent_representation(**cells)
    monkeypatch.setattr("scmixvi.singlecell._parts.cell_refinement._ELEMENTS_A_STEP_ON_CPU", 2 * 23)
    parts, _ = model.get_latent_representation(**cells)
    assert (np.abs(parts - whole) / np.sqrt(variance)).max() < 0.5, "standard deviations"


def test_weights_by_cell_choose_among_refined_draws(trained):
    """With few draws to choose from, refined ones give the exact posterior's expression."""
    model = trained(n_components=1)

    def off(n_choices, **more):
        found = model.get_normalized_expression(
            indices=CELLS,
            n_samples_overall=3000,
            weights="importance_by_cell",
            n_mc_samples=n_choices,
            **more,
        )
        return found.groupby(level=0).mean().loc[model.adata.obs_names[CELLS]].to_numpy()

    exact = off(4000)
    raw, refined = off(5), off(5, n_refinement_steps=100)
    assert np.abs(refined - exact).mean() < 0.6 * np.abs(raw - exact).mean()


def test_no_steps_are_as_before_and_bad_numbers_are_said(trained):
    model = trained()
    plain = model.get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(n_refinement_steps=0), plain)
    for wrong in (-1, 2.5, True, "many"):
        for ask in (
            model.get_latent_representation,
            model.get_variational_gap,
            model.minify_adata,
            lambda n_refinement_steps: model.get_marginal_ll(
                n_mc_samples=5, n_refinement_steps=n_refinement_steps
            ),
            lambda n_refinement_steps: model.get_normalized_expression(
                n_samples_overall=5,
                weights="importance_by_cell",
                n_refinement_steps=n_refinement_steps,
            ),
        ):
            with pytest.raises(ValueError, match="n_refinement_steps must be a whole number"):
                ask(n_refinement_steps=wrong)
    assert model.minified_data_type is None

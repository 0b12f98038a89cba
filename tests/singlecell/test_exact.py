"""Draws of the exact posterior are the model's own: simulated cells tell."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import stats

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._parts.depth import AtTheSum, with_depth
from scmixvi.singlecell._queries import exact as _exact
from scmixvi.singlecell._queries.exact import N_FINAL

CELLS = np.arange(0, 60, 7)


def trained(make_model, n_epochs=2, **arguments):
    model = make_model(**({"n_components": 2, "n_latent": 2} | arguments))
    model.train(n_epochs, latent_key=None, **QUIET)
    return model


def simulated(model, first_batch, depth=None):
    """Cells as the model draws them, and their z `[n, D]`.

    Size factors are those of its data, and so are depths unless the model draws them or they are
    given, `[n, 1]`.
    """
    module, batch = model.module, first_batch(model)
    z = torch.randn(model.adata.n_obs, module.n_latent)
    with torch.no_grad():
        encoded = module.inference(**module._get_inference_input(batch))
        given = module._get_generative_input(batch, encoded) | {"z": z}
        if not module.use_observed_lib_size:
            depth = module.generative(**given)["pl"].sample().exp()
        if depth is not None:
            given["library"] = depth.log()
        x = module.generative(**given)["px"].sample()
    return AnnData(x.numpy(), obs=model.adata.obs.copy(), var=model.adata.var.copy()), z.numpy()


def uniformity(z, draws):
    """p-value of the ranks of the true z among the draws `[L, n, D]`, which are then uniform."""
    ranks = (draws < z).sum(0).ravel()
    observed = np.bincount(ranks * 10 // (len(draws) + 1), minlength=10)
    return stats.chisquare(observed).pvalue


@pytest.mark.parametrize(
    "arguments",
    [
        {"size_factor_key": "size"},
        {
            "size_factor_key": "size",
            "batch_key": "batch",
            "gene_likelihood": "nb",
            "mixture_weights": [0.7, 0.3],
        },
        {"use_observed_lib_size": False, "batch_key": "batch"},
    ],
    ids=["size factors", "batches", "latent library sizes"],
)
def test_the_truth_is_one_of_the_draws(make_model, first_batch, arguments):
    """Simulation-based calibration (Talts et al. 2018); the encoders do not pass."""
    data = make_adata(600)
    model = trained(make_model, 40, data=data, **arguments)
    cells, z = simulated(model, first_batch)
    cells.X[cells.X.sum(1) == 0, 0] = 1  # a cell without counts is refused
    exact = model.get_posterior_samples(cells, n_samples=99, progress=False)
    assert uniformity(z, exact) > 1e-3
    encoders = [model.get_latent_representation(cells, give_mean=False) for _ in range(99)]
    assert uniformity(z, np.stack(encoders)) < 1e-6


def test_depths_of_one_cell_can_be_latent(make_model):
    model = trained(make_model, 2, batch_key="batch")
    cell = model.adata[:1].copy()
    z = model.get_posterior_samples(cell, progress=False, use_observed_lib_size=False)
    assert z.shape[1] == 1
    assert np.isfinite(z).all()


def test_depths_can_be_latent_to_a_model_of_sums(make_model, first_batch):
    """Where dropout takes most of the counts, z is wrong with their sum for the depth."""
    model = trained(make_model, 40, data=make_adata(600, 80), batch_key="batch")
    with torch.no_grad():
        model.module.decoder.px_dropout_decoder.bias += 2
    logs = torch.from_numpy(model.adata.X.toarray()).sum(1, keepdim=True).log()
    batch = model.adata.obs["batch"].cat.codes.to_numpy()
    depth = torch.empty(600, 1)
    for code in np.unique(batch):
        mean, sd = logs[batch == code].mean(), logs[batch == code].std(unbiased=False)
        depth[batch == code] = (mean + sd * torch.randn((batch == code).sum(), 1)).exp()
    cells, z = simulated(model, first_batch, depth)
    cells.X[cells.X.sum(1) == 0, 0] = 1  # a cell without counts is refused
    found = [
        model.get_posterior_samples(
            cells, n_samples=99, progress=False, use_observed_lib_size=observed
        )
        for observed in (False, None)
    ]
    assert uniformity(z, found[0]) > 1e-3
    assert uniformity(z, found[1]) < 1e-6
    assert model.module.use_observed_lib_size
    assert "library_log_means" not in model.module.state_dict()


def test_one_row_a_cell_in_the_order_asked_for(make_model):
    model = trained(make_model, 10)
    found = model.get_posterior_samples(indices=CELLS[::-1], n_samples=40, progress=False)
    assert found.shape == (40, len(CELLS), 2)
    refined = model.get_latent_representation(indices=CELLS[::-1], n_refinement_steps=100)
    variance = model.get_latent_representation(indices=CELLS[::-1], return_dist=True)[1]
    assert (np.abs(found.mean(0) - refined) < 2 * variance**0.5 + 0.2).all()
    assert len(np.unique(found[:, 0, 0])) > 25, "hardly any is chosen twice"


def test_draws_follow_torchs_seed(make_model):
    model, found = trained(make_model), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model.get_posterior_samples(indices=CELLS, n_samples=3, progress=False))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_there_are_always_more_draws_to_choose_from(make_model, monkeypatch):
    model, sizes = trained(make_model), []

    def draws(module, tensors, n_samples, n_final):
        sizes.append((n_samples, n_final))
        n_cells = len(tensors["X"])
        return torch.zeros(n_samples, n_cells, 2), torch.ones(n_cells)

    monkeypatch.setattr(_exact, "posterior_draws", draws)
    for n_samples in (1, 1000):
        model.get_posterior_samples(indices=[0], n_samples=n_samples, progress=False)
    assert sizes == [(1, N_FINAL), (1000, 10_000)]


def test_logistic_normal_draws_are_on_the_simplex(make_model):
    model = trained(make_model, latent_distribution="ln")
    found = model.get_posterior_samples(indices=CELLS, n_samples=5, progress=False)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert found.min() >= 0


def test_cells_whose_draws_hardly_count_are_counted(make_model, monkeypatch):
    model = trained(make_model)
    monkeypatch.setattr(_exact, "FEW", 1.01)
    with pytest.warns(UserWarning, match=f"of {len(CELLS)} of {len(CELLS)} cells"):
        model.get_posterior_samples(indices=CELLS, progress=False)


def test_minified_cells_with_counts_have_the_same_posterior(make_model):
    model = trained(make_model, 10)
    means = [model.get_posterior_samples(indices=CELLS, n_samples=400, progress=False).mean(0)]
    model.minify_adata("latent_posterior_parameters_with_counts", n_refinement_steps=20)
    means.append(model.get_posterior_samples(indices=CELLS, n_samples=400, progress=False).mean(0))
    np.testing.assert_allclose(*means, atol=0.25)


def test_what_has_no_exact_posterior_is_refused(make_model):
    model = trained(make_model, 1)
    with pytest.raises(ValueError, match="n_samples must be a whole number"):
        model.get_posterior_samples(n_samples=0)
    with pytest.raises(ValueError, match="chooses no cell"):
        model.get_posterior_samples(indices=[])
    model.minify_adata()
    with pytest.raises(ValueError, match="minified without counts"):
        model.get_posterior_samples()


def test_a_model_asked_about_other_depths_has_the_same_decoder(make_model, first_batch):
    """Its log p(x, z, l) at the sum is log p(x, z) of sums, and the prior of l."""
    model = trained(make_model, batch_key="batch")
    sums, batch = model.module, first_batch(model)
    latent = with_depth(sums, False, model.adata_manager)
    assert with_depth(latent, None, model.adata_manager) is latent
    again = with_depth(latent, True, model.adata_manager)
    log_l, u = batch["X"].sum(1, keepdim=True).log().unsqueeze(0), torch.randn(1, 60, 2)
    with torch.no_grad():
        here, there, back = (
            module.eval()._log_joint(batch, module._encoded_whole(batch), state)
            for module, state in ((sums, u), (latent, torch.cat([u, log_l], -1)), (again, u))
        )
        means, variances = latent._compute_local_library_params(batch["batch"])
    prior = torch.distributions.Normal(means, variances.sqrt()).log_prob(log_l).squeeze(-1)
    torch.testing.assert_close(there, here + prior)
    torch.testing.assert_close(back, here, rtol=0, atol=0)


def test_the_sum_is_that_of_counts_alone():
    """Encoders may see covariates beside them."""
    x = torch.tensor([[1.0, 4.0, 7.0], [0.0, 2.0, -3.0]])
    for log_variational in (False, True):
        seen = torch.cat([x[:, :2].log1p(), x[:, 2:]], 1) if log_variational else x
        q, draw = AtTheSum(2, log_variational)(seen)
        torch.testing.assert_close(q.loc, torch.tensor([[5.0], [2.0]]).log())
        assert draw.shape == (2, 1)


def test_the_prior_of_a_batch_is_that_of_the_models_own_cells_or_of_those_asked_for(make_model):
    """A model of new cells has none of the batches that its reference had."""
    reference = trained(make_model, 1, batch_key="batch")
    cells = make_adata(40, seed=3)
    cells.X = cells.X * 5
    cells.obs["batch"] = "new"
    MixtureSCVI.prepare_query_anndata(cells, reference)
    query = MixtureSCVI.load_query_data(cells, reference)
    managers = query.adata_manager, reference.adata_manager
    module = with_depth(query.module, False, *managers)
    for data, names in ((cells, ["new"]), (reference.adata, ["x", "y"])):
        logs = np.log(np.asarray(data.X.sum(1)).ravel())
        for name in names:
            code = list(
                query.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
            ).index(name)
            here = logs[(data.obs["batch"] == name).to_numpy()]
            assert module.library_log_means[0, code].item() == pytest.approx(here.mean(), rel=1e-4)
            assert module.library_log_vars[0, code].item() == pytest.approx(here.var(), rel=1e-4)
    query.is_trained_ = True
    asked = {"n_samples": 3, "progress": False, "use_observed_lib_size": False}
    assert query.get_posterior_samples(reference.adata.copy(), **asked).shape == (3, 60, 2)


def test_depths_that_cannot_be_latent_are_refused(make_model):
    latent = {"indices": CELLS, "use_observed_lib_size": False}
    model = trained(make_model, 1, size_factor_key="size")
    with pytest.raises(ValueError, match="given as size factors and cannot be latent"):
        model.get_posterior_samples(**latent)
    model = trained(make_model, 1, gene_likelihood="normal")
    with pytest.raises(ValueError, match="not those of counts and cannot be latent"):
        model.get_posterior_samples(**latent)
    with pytest.raises(ValueError, match="use_observed_lib_size must be True or False"):
        model.get_posterior_samples(use_observed_lib_size="no")
    data = make_adata()
    data.obs["batch"] = ["alone"] + ["others"] * 59
    model = trained(make_model, 1, data=data, batch_key="batch")
    with pytest.raises(ValueError, match="of batch 'alone' have one library size, or it has one"):
        model.get_posterior_samples(**latent)

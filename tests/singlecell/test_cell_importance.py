"""Expression of draws weighted cell by cell: the exact posterior's, and cells count alike."""

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS

from counts import QUIET
from scmixvi.singlecell._queries.cell_importance import _weighted

CELLS = np.array([4, 17, 30, 58])
BY_CELL = {"weights": "importance_by_cell", "return_numpy": True}


def of_one_latent(make_model, **settings):
    """A model whose posterior is known by quadrature, its encoders beside it and too wide."""
    model = make_model(n_latent=1, batch_key="batch", **settings)
    model.train(15, **QUIET)
    with torch.no_grad():
        for encoder in model.module.z_encoders:
            encoder.mean_encoder.bias += 0.1
            encoder.var_encoder.bias += 0.5
    return model


def exact_expression(model, cells, batch=None):
    """Posterior mean of the scale `[n, G]`, on a grid of z; and that under q."""
    module = model.module
    (tensors,) = model._make_data_loader(adata=model.adata, indices=cells, batch_size=len(cells))
    x = tensors[REGISTRY_KEYS.X_KEY]
    with torch.inference_mode():
        encoded = module.inference(**module._get_inference_input(tensors))
        u = torch.linspace(-6, 6, 4001).reshape(-1, 1, 1).expand(-1, len(cells), 1)
        outputs = encoded | {
            "z": module.z_encoder.z_transformation(u),
            "library": x.sum(1, keepdim=True).log().expand(len(u), -1, -1),
        }
        inputs = module._get_generative_input(tensors, outputs)
        log_lik = module.generative(**inputs)["px"].log_prob(x).sum(-1)
        scale = module.generative(**inputs, transform_batch=batch)["px"].scale
        log_p = log_lik - 0.5 * u.squeeze(-1).square()
        log_q = encoded["qz"].log_prob(u).squeeze(-1)
        return [(log.softmax(0).unsqueeze(-1) * scale).sum(0).numpy() for log in (log_p, log_q)]


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ({"n_components": 1}, None),
        ({"n_components": 3}, "y"),
        ({"n_components": 2, "mixture_weights": [0.8, 0.2], "gene_likelihood": "nb"}, None),
        ({"n_components": 2, "mixture_weights": "amortized", "gene_likelihood": "poisson"}, "y"),
    ],
    ids=str,
)
def test_expression_is_that_of_the_exact_posterior(make_model, settings, batch):
    model = of_one_latent(make_model, **settings)
    exact, under_q = exact_expression(model, CELLS, None if batch is None else 1)
    for one, cell in enumerate(CELLS):
        drawn = model.get_normalized_expression(
            indices=[cell],
            transform_batch=batch,
            n_samples_overall=1000,
            n_mc_samples=4000,
            **BY_CELL,
        )
        error = drawn.std(0) / np.sqrt(400)  # 1000 chosen, of as good as some 700
        off = np.abs(drawn.mean(0) - exact[one])
        assert (off < 5 * error + 1e-6).all()
        assert off.sum() < 0.3 * np.abs(under_q[one] - exact[one]).sum(), "no better than q"


def test_draws_of_a_component_count_by_its_weight(make_model, first_batch):
    model = make_model(n_components=2, mixture_weights=[0.9, 0.1])
    module, batch = model.module.eval(), first_batch(model)
    with torch.inference_mode():
        encoded = module.inference(**module._get_inference_input(batch))
        states, found = _weighted(module, batch, encoded, 8, 4)
        u = states[..., :-1]
        log_q = encoded["qz"].log_prob(u).squeeze(-1)
        expected = module._log_joint(batch, encoded, u) - log_q
    expected = expected + torch.tensor([0.9, 0.1]).log().repeat(4).unsqueeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("n_draws", "counts"), [(43, {10, 11}), (3, {1}), (40, {10}), (1, {1}), (4, {1})]
)
def test_every_cell_counts_alike(make_model, n_draws, counts):
    """One cell more or less where the number of draws is no multiple; cells in random order.

    With 4 draws of 4 cells the last minibatch has one draw.
    """
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    drawn = model.get_normalized_expression(
        indices=CELLS, n_samples_overall=n_draws, weights="importance_by_cell", batch_size=3
    )
    assert len(drawn) == n_draws
    np.testing.assert_allclose(drawn.sum(axis=1), 1, rtol=1e-5)
    names = list(drawn.index)
    assert {names.count(name) for name in set(names)} == counts
    assert set(names) <= set(model.adata.obs_names[CELLS])
    assert n_draws < 10 or names != sorted(names), "pairs of two groups must not follow the cells"


def test_rows_belong_to_the_cells_that_name_them(make_model):
    """Means at a cell's own library size sum to its counts."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    drawn = model.get_normalized_expression(
        n_samples_overall=150,
        library_size="latent",
        weights="importance_by_cell",
        n_mc_samples=50,
        batch_size=7,
    )
    counts = model.adata.to_df().sum(axis=1)
    np.testing.assert_allclose(drawn.sum(axis=1), counts.loc[drawn.index], rtol=1e-4)


def test_latent_library_sizes_are_those_of_the_chosen_draws(make_model):
    """Where the likelihood leaves one l to choose, expression has it, whatever the encoder says."""
    model = make_model(n_components=2, use_observed_lib_size=False)
    model.train(1, **QUIET)
    log_ratio = model.module._log_ratio

    def of_the_largest(*args):
        ratio, drawn = log_ratio(*args)
        wanted = drawn["library"].squeeze(-1).reshape(ratio.shape)
        return 1e4 * wanted, drawn

    model.module._log_ratio = of_the_largest
    drawn = model.get_normalized_expression(
        n_samples_overall=120, library_size="latent", weights="importance_by_cell", n_mc_samples=40
    )
    of_cells = np.log(drawn.sum(axis=1)).groupby(level=0).agg(["min", "max"])
    np.testing.assert_allclose(of_cells["min"], of_cells["max"], rtol=1e-5)
    usual = model.get_latent_library_size(give_mean=True).ravel()
    names = model.adata.obs_names.get_indexer(of_cells.index)
    assert (of_cells["max"] > np.log(usual[names])).mean() > 0.95, "the largest of 40"


def test_expression_is_scaled_to_the_library_size(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    drawn = model.get_normalized_expression(n_samples_overall=20, library_size=1e4, **BY_CELL)
    np.testing.assert_allclose(drawn.sum(1), 1e4, rtol=1e-4)


def test_one_seed_gives_one_result_whatever_the_minibatches_of_decoding(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    found = []
    for _ in range(2):
        np.random.seed(3)  # noqa: NPY002  what scvi-tools draws from
        torch.manual_seed(3)
        found.append(model.get_normalized_expression(n_samples_overall=70, **BY_CELL))
    np.testing.assert_array_equal(*found)


def test_differential_expression_takes_them(make_model):
    model = make_model(n_components=2, batch_key="batch")
    model.train(1, **QUIET)
    table = model.differential_expression(
        idx1=np.arange(30),
        idx2=np.arange(30, 60),
        mode="change",
        weights="importance_by_cell",
        silent=True,
    )
    assert len(table) == 23
    assert table["proba_de"].between(0, 1).all()


def test_counts_are_needed(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.minify_adata()
    with pytest.raises(ValueError, match="minified without counts.*load the model with the full"):
        model.get_normalized_expression(n_samples_overall=5, **BY_CELL)


@pytest.mark.parametrize(
    "arguments", [{"transform_batch": ["x", "y"]}, {"n_samples": 2}], ids=["batches", "n_samples"]
)
def test_what_it_does_not_take(make_model, arguments):
    model = make_model(n_components=2, batch_key="batch")
    model.train(1, **QUIET)
    with pytest.raises(NotImplementedError, match="nor several batches in transform_batch"):
        model.get_normalized_expression(n_samples_overall=5, **BY_CELL, **arguments)


def test_unknown_weights_are_refused_with_those_there_are(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    known = r"\['uniform', 'importance', 'importance_by_cell'\], but it is 'Uniform'"
    with pytest.raises(ValueError, match=known):
        model.get_normalized_expression(weights="Uniform")


@pytest.mark.parametrize("name", ["n_mc_samples", "n_samples_overall"])
@pytest.mark.parametrize("draws", [0, 2.5])
def test_numbers_of_draws_are_checked(make_model, name, draws):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        model.get_normalized_expression(**{"n_samples_overall": 5, name: draws}, **BY_CELL)


def test_arguments_of_other_weights_are_refused(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    with pytest.raises(TypeError, match="takes no max_cells, truncation: its own arguments are n_"):
        model.get_normalized_expression(
            n_samples_overall=5, max_cells=10, truncation=True, **BY_CELL
        )


def test_without_an_overall_number_they_do_nothing(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    found = []
    for weights in ("importance_by_cell", "uniform"):
        torch.manual_seed(0)
        found.append(model.get_normalized_expression(n_samples=2, weights=weights))
    np.testing.assert_array_equal(*found)


def test_latent_libraries_and_normal_likelihoods(make_model):
    for settings in ({"use_observed_lib_size": False}, {"gene_likelihood": "normal"}):
        model = make_model(n_components=2, **settings)
        model.train(1, **QUIET)
        drawn = model.get_normalized_expression(n_samples_overall=60, **BY_CELL)
        assert np.isfinite(drawn).all()

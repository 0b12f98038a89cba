"""One clear sentence for every kind of bad input, and adata as it was."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scvi.model import SCVI

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI


def snapshot(adata):
    return set(adata.uns), set(adata.obs), set(adata.obsm), adata.X.copy()


def assert_untouched(adata, before):
    assert snapshot(adata)[:3] == before[:3]
    a, b = (m.toarray() if hasattr(m, "toarray") else m for m in (adata.X, before[3]))
    np.testing.assert_array_equal(a, b)


def with_entry(value, dense=False):
    adata = make_adata()
    counts = adata.X.toarray()
    counts[4, 5] = value
    adata.X = counts if dense else csr_matrix(counts)
    return adata


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_counts_that_are_no_numbers(value, dense):
    adata = with_entry(value, dense)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"adata\.X holds 1 entries that are NaN or infinite"):
        MixtureSCVI.setup_anndata(adata)
    assert_untouched(adata, before)
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(ValueError, match=r"adata\.layers\['counts'\] holds 1 entries"):
        MixtureSCVI.setup_anndata(adata, layer="counts")


@pytest.mark.parametrize("dense", [True, False])
def test_negative_counts(dense):
    adata = with_entry(-2.0, dense)
    MixtureSCVI.setup_anndata(adata)
    before = snapshot(adata)
    model = MixtureSCVI(adata, n_hidden=8)
    with pytest.raises(ValueError, match=r"must not be negative, but the smallest is -2\.0"):
        model.train(1, **QUIET)
    assert_untouched(adata, before)


def test_fractional_counts_warn_as_in_scvi():
    adata = make_adata()
    adata.X = adata.X * 0.3
    with pytest.warns(UserWarning, match="does not contain unnormalized count data"):
        MixtureSCVI.setup_anndata(adata)
    MixtureSCVI(adata, n_hidden=8).train(1, **QUIET)
    assert np.isfinite(adata.obsm["X_mix"]).all()


def test_empty_cells():
    adata = make_adata()
    counts = adata.X.toarray()
    counts[[3, 9]] = 0
    adata.X = csr_matrix(counts)
    MixtureSCVI.setup_anndata(adata)
    model = MixtureSCVI(adata, n_hidden=8)
    with pytest.raises(ValueError, match=r"2 cells have no counts at all.*filter_cells"):
        model.train(1, **QUIET)
    assert "X_mix" not in adata.obsm
    MixtureSCVI.setup_anndata(adata, size_factor_key="size")
    MixtureSCVI(adata, n_hidden=8).train(1, **QUIET)


@pytest.mark.parametrize(
    ("column", "value", "setup", "message"),
    [
        ("age", np.nan, {"continuous_covariate_keys": ["size", "age"]}, "covariate .*'age'"),
        ("age", np.inf, {"continuous_covariate_keys": ["age"]}, "covariate .*'age'"),
        ("size", np.nan, {"size_factor_key": "size"}, "size factor .*'size'"),
        ("size", 0.0, {"size_factor_key": "size"}, "size factor .*'size'"),
        ("size", -1.0, {"size_factor_key": "size"}, "size factor .*'size'"),
    ],
)
def test_covariates_that_are_no_numbers(make_model, adata, column, value, setup, message):
    adata.obs.loc["cell7", column] = value
    model = make_model(n_components=2, **setup)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=rf"{message}\] holds 1 entries that are NaN"):
        model.train(1, **QUIET)
    assert_untouched(adata, before)


def test_a_gene_that_is_zero_everywhere_is_fine():
    adata = make_adata()
    counts = adata.X.toarray()
    counts[:, 7] = 0
    adata.X = csr_matrix(counts)
    MixtureSCVI.setup_anndata(adata)
    MixtureSCVI(adata, n_hidden=8).train(1, **QUIET)
    assert np.isfinite(adata.obsm["X_mix"]).all()


def test_data_that_were_not_set_up(adata):
    before = snapshot(adata)
    with pytest.raises(ValueError, match="setup_anndata"):
        MixtureSCVI(adata)
    assert_untouched(adata, before)


def test_a_missing_layer_or_column_is_named(adata):
    with pytest.raises((KeyError, ValueError), match="counts"):
        MixtureSCVI.setup_anndata(adata, layer="counts")
    with pytest.raises((KeyError, ValueError), match="no_such"):
        MixtureSCVI.setup_anndata(adata, batch_key="no_such")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 0}, "n_components must be a whole number of at least 1, but it is 0"),
        ({"n_components": -1}, "n_components must be a whole number"),
        ({"n_components": 1.5}, "n_components must be a whole number"),
        ({"n_components": True}, "n_components must be a whole number"),
        ({"n_importance_samples": 0}, "n_importance_samples must be a whole number"),
        ({"mixture_weights": [0.5, 0.6, 0, 0]}, "must sum to 1"),
        ({"mixture_weights": [0.5, 0.5]}, "one number for each of the 4 components"),
        ({"mixture_weights": [1.5, -0.5, 0, 0]}, "not negative"),
        ({"mixture_weights": None}, "one number for each of the 4 components"),
        ({"mixture_weights": [[0.25] * 4]}, "one number for each of the 4 components"),
        ({"mixture_weights": ["a"] * 4}, "one number for each of the 4 components"),
        ({"mixture_weights": "best"}, r"\['uniform', 'learned', 'amortized'\] or 4 numbers"),
    ],
)
def test_mixture_arguments(adata, arguments, message):
    MixtureSCVI.setup_anndata(adata)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=message):
        MixtureSCVI(adata, **arguments)
    assert_untouched(adata, before)


def test_unknown_representation(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match=r"\['mean', 'components', 'params'\].*'modes'"):
        model.get_latent_representation(representation="modes")


@pytest.mark.parametrize("arguments", [{"give_mean": False}, {"return_dist": True}])
def test_parameters_are_neither_draws_nor_pairs(make_model, arguments):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    for representation in ("components", "params"):
        with pytest.raises(ValueError, match=f"'{representation}' is one array of parameters"):
            model.get_latent_representation(representation=representation, **arguments)


@pytest.mark.parametrize("gene_likelihood", ["poisson", "normal"])
def test_importance_weights_of_other_likelihoods(make_model, gene_likelihood):
    model = make_model(n_components=2, gene_likelihood=gene_likelihood)
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match=f"'zinb' or 'nb', but this model's is '{gene_likelihood}"):
        model.get_normalized_expression(n_samples_overall=5, weights="importance")


@pytest.mark.parametrize("where", ["precision", "trainer_config"])
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true", 64])
def test_precisions_that_change_the_weights(make_model, precision, where):
    arguments = {"precision": precision}
    model = make_model(n_components=2)
    with pytest.raises(ValueError, match=f"precision={precision!r} leaves weights of a type"):
        model.train(1, **QUIET, **(arguments if where == "precision" else {where: arguments}))
    assert not model.is_trained


def test_bad_arguments_of_an_upgrade_leave_the_model_alone(make_model):
    stock = make_model(SCVI)
    stock.train(1, **QUIET)
    before = dict(stock.adata.uns)
    for arguments in ({"estimator": "s2a", "n_drawn": 9}, {"encoder_sharing": "some"}):
        with pytest.raises(ValueError, match="must be"):
            MixtureSCVI.from_scvi_model(stock, 3, **arguments)
    assert stock.adata.uns == before


def test_a_model_without_data_is_to_be_trained_first():
    with pytest.warns(UserWarning, match="without `adata`"):
        model = MixtureSCVI(n_components=2)
    with pytest.raises(RuntimeError, match="Please train the model first"):
        model.get_latent_representation()


def test_queries_before_training(make_model):
    model = make_model(n_components=2)
    for query in (
        model.get_latent_representation,
        model.get_component_weights,
        model.get_posterior_diversity,
    ):
        with pytest.raises(RuntimeError, match="Please train the model first"):
            query()


@pytest.mark.parametrize("sharing", ["separate", "trunk"])
@pytest.mark.parametrize("value", [np.nan, -3.0])
def test_query_cells_with_bad_counts(make_model, value, sharing):
    model = make_model(n_components=2, encoder_sharing=sharing)
    model.train(1, **QUIET)
    query = with_entry(value)
    for method, arguments in (
        (model.get_latent_representation, {}),
        (model.get_latent_representation, {"representation": "params"}),
        (model.get_component_weights, {}),
        (model.get_posterior_diversity, {}),
        (model.get_elbo, {}),
        (model.get_marginal_ll, {"n_mc_samples": 4}),
        (model.get_normalized_expression, {}),
    ):
        with pytest.raises(ValueError, match="1 of .* no finite latents: their counts or covari"):
            method(query, **arguments)

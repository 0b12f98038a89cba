"""One clear sentence for every kind of bad input, and adata as it was."""

import lightning as L
import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csc_array, csr_array, csr_matrix
from scvi.model import SCVI
from torch.utils.data import BatchSampler, DataLoader

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._checks import queries as _query_checks
from scmixvi.singlecell._training.plan import MixtureTrainingPlan


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


def test_a_model_without_data_is_told_of_which_cells(make_model, first_batch, tmp_path):
    source = make_model(n_components=2)
    source.train(1, latent_key=None, **QUIET)
    source.save(tmp_path / "model")
    model = MixtureSCVI(registry=MixtureSCVI.load_registry(tmp_path / "model"), n_components=2)
    with pytest.raises(AttributeError, match="no data of its own: train it with a datamodule"):
        model.train(1, **QUIET)
    model.is_trained_ = True  # as after a training with a datamodule
    for query in (
        model.get_latent_representation,
        model.get_elbo,
        model.get_marginal_ll,
        model.get_variational_gap,
        model.get_normalized_expression,
        model.minify_adata,
    ):
        with pytest.raises(ValueError, match="no data of its own: name the cells, adata"):
            query()
    assert len(model.get_latent_representation(dataloader=[first_batch(source)])) == 60
    assert len(model.get_latent_representation(source.adata)) == 60


def test_a_model_without_data_decodes_minibatches(make_model, first_batch):
    stock = make_model(n_components=2)
    with pytest.warns(UserWarning, match="without `adata`"):
        model = MixtureSCVI(n_components=2)
    model.module = stock.module.eval()
    batch = first_batch(stock)
    assert model.get_normalized_expression(dataloader=[batch], n_samples=1).shape == (60, 23)


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
@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.nan, "adata.X holds 1 entries that are NaN or infinite"),
        (-3.0, "the counts must not be negative, but the smallest is -3"),
        (-0.5, "the counts must not be negative, but the smallest is -0.5"),
        (None, "1 cells have no counts at all"),
    ],
)
def test_query_cells_with_bad_counts(make_model, value, sentence, sharing):
    model = make_model(n_components=2, encoder_sharing=sharing)
    model.train(1, **QUIET)
    query = with_entry(value) if value is not None else without_counts(make_adata())
    for method, arguments in (
        (model.get_latent_representation, {}),
        (model.get_latent_representation, {"representation": "params"}),
        (model.get_latent_representation, {"n_refinement_steps": 2}),
        (model.get_variational_gap, {}),
        (model.get_posterior_samples, {}),
        (model.get_component_weights, {}),
        (model.get_posterior_diversity, {}),
        (model.get_elbo, {}),
        (model.get_marginal_ll, {"n_mc_samples": 4}),
        (model.get_normalized_expression, {}),
    ):
        with pytest.raises(ValueError, match=sentence):
            method(query, **arguments)


def without_counts(adata):
    adata.X[4] = 0
    adata.X.eliminate_zeros()
    return adata


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda names: names[::-1], "not the model's genes in the model's order"),
        (lambda names: ["other", *names[1:]], "1 of the model's .* genes are missing"),
    ],
)
def test_query_cells_of_other_genes(make_model, change, sentence):
    """Their number is right, and scvi-tools would take one gene for another."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    query = make_adata()
    query.var_names = change(list(query.var_names))
    for method in (
        model.get_latent_representation,
        model.get_elbo,
        model.get_variational_gap,
        model.get_posterior_samples,
        model.get_normalized_expression,
    ):
        with pytest.raises(ValueError, match=sentence):
            method(query)
    with pytest.raises(ValueError, match=sentence):
        model.differential_expression(query, groupby="batch")


def test_renamed_genes_of_the_model_are_the_models_genes(make_model):
    """Names may change after registration; parts of the same data have the new ones."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    whole = model.get_latent_representation()
    model.adata.var_names = [f"symbol {name}" for name in model.adata.var_names]
    part = model.get_latent_representation(model.adata[:10].copy())
    np.testing.assert_allclose(part, whole[:10], atol=1e-4)


def test_values_that_are_no_counts_may_be_negative(make_model):
    model = make_model(gene_likelihood="normal", log_variational=False)
    model.train(1, **QUIET)
    assert np.isfinite(model.get_latent_representation(with_entry(-3.0))).all()


def test_cells_are_looked_at_once(make_model, monkeypatch):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    query, looked = make_adata(seed=1), []
    monkeypatch.setattr(_query_checks, "check_counts", lambda *a: looked.append(a))
    for _ in range(3):
        model.get_latent_representation(query)
    assert len(looked) == 1
    changed = query.copy()
    model.get_latent_representation(changed)
    assert len(looked) == 2, "a copy may hold something else"


@pytest.mark.parametrize(
    ("data", "arguments", "sentence"),
    [
        (lambda a: a.to_df(), {}, "must be an AnnData of raw counts, but it is a DataFrame"),
        (lambda a: AnnData(obs=a.obs, var=a.var), {}, "adata.X is empty .None.: name the layer"),
        (lambda a: a[:0].copy(), {}, "adata has 0 cells and"),
        (lambda a: a[:, :0].copy(), {}, "and 0 genes"),
        (lambda a: a, {"categorical_covariate_keys": 3}, "takes a list of columns .* but it is 3"),
    ],
)
def test_what_is_no_data(data, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        MixtureSCVI.setup_anndata(data(make_adata()), **arguments)


@pytest.mark.parametrize("name", ["n_hidden", "n_latent", "n_layers"])
def test_layers_have_sizes(make_model, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, but it is"):
        make_model(**{"n_hidden": 4, "n_latent": 3, name: 0})


@pytest.mark.parametrize("n_cells", [1, 2])
def test_a_training_has_cells(make_model, n_cells):
    model = make_model(data=make_adata(n_cells))
    with pytest.raises(ValueError, match=f"adata has {n_cells} cell.*pass train_size=1.0"):
        model.train(1, **QUIET)
    assert not model.is_trained
    make_model(data=make_adata(n_cells), use_batch_norm="none").train(1, train_size=1.0, **QUIET)


def test_batch_norm_needs_two_cells(make_model):
    model = make_model(data=make_adata(17))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(ValueError, match="a minibatch has one cell.*'drop_last': True"):
        model.train(1, batch_size=8, train_size=1.0, **QUIET)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    leave_out = {"drop_last": True}
    model.train(1, batch_size=8, train_size=1.0, datasplitter_kwargs=leave_out, **QUIET)
    make_model(data=make_adata(17)).train(
        1, batch_size=8, train_size=1.0, limit_train_batches=2, **QUIET
    )
    unnormalised = make_model(data=make_adata(17), use_batch_norm="none")
    unnormalised.train(1, batch_size=8, train_size=1.0, **QUIET)


@pytest.mark.parametrize("split", [{"train_size": 1.0}, {"train_size": 0.9, "validation_size": 0}])
def test_validation_needs_cells(make_model, split):
    model = make_model()
    with pytest.raises(ValueError, match="leaves no cells for it: pass train_size=0.9"):
        model.train(1, check_val_every_n_epoch=1, **split, **QUIET)
    assert not model.is_trained_
    model.train(1, check_val_every_n_epoch=None, **split, **QUIET)


class NoLength:
    """A sampler that does not say how many cells it has."""

    def __init__(self, n_cells):
        self.n_cells = n_cells

    def __iter__(self):
        return iter(range(self.n_cells))


class NoneAlone(BatchSampler):
    """A last cell goes with those before."""

    def __iter__(self):
        *before, last = super().__iter__()
        yield from [*before[:-1], before[-1] + last]


@pytest.mark.parametrize(
    "batches", [BatchSampler(NoLength(60), 16, False), NoneAlone(range(60), 59, False)]
)
def test_samplers_of_the_user_s_are_not_judged_by_their_length(make_model, batches):
    model = make_model()
    dataset = model._make_data_loader(adata=model.adata).dataset
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(dataset, sampler=batches, batch_size=None)
    trainer.fit(MixtureTrainingPlan(model.module), loader)
    assert trainer.global_step == len(list(batches))


@pytest.mark.parametrize("max_epochs", [-1, 0, 1.5])
def test_a_training_has_an_end(make_model, max_epochs):
    model = make_model()
    with pytest.raises(ValueError, match="max_epochs must be a whole number of at least 1, but it"):
        model.train(max_epochs, **QUIET)
    assert not model.is_trained
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match="max_epochs must be a whole number of at least 1, but it"):
        model.refine_encoders(max_epochs, **QUIET)


def test_epochs_may_be_counted_by_numpy(make_model):
    model = make_model()
    model.train(np.int64(2), latent_key=None, **QUIET)
    assert len(model.history["elbo_train"]) == 2
    model.refine_encoders(np.int64(1), latent_key=None, **QUIET)
    assert len(model.refinement_history["elbo_train"]) == 1


def test_cells_of_a_minibatch_may_be_counted_by_numpy(make_model):
    model = make_model()
    model.train(1, batch_size=np.int64(20), latent_key=None, **QUIET)
    model.refine_encoders(1, batch_size=np.int32(20), latent_key=None, **QUIET)
    found = model.get_latent_representation(batch_size=np.int64(7))
    np.testing.assert_allclose(found, model.get_latent_representation(), rtol=1e-4, atol=1e-5)
    assert len(model.get_marginal_ll(n_mc_samples=2, batch_size=np.int64(7), return_mean=False))


@pytest.mark.parametrize("batch_size", [-1, 0, 2.5, True, "many"])
def test_a_minibatch_has_cells(make_model, batch_size):
    model = make_model()
    sentence = f"batch_size must be a whole number of at least 1, but it is {batch_size!r}"
    with pytest.raises(ValueError, match=sentence):
        model.train(1, batch_size=batch_size, **QUIET)
    assert not model.is_trained
    model.train(1, latent_key=None, **QUIET)
    with pytest.raises(ValueError, match=sentence):
        model.get_latent_representation(batch_size=batch_size)


@pytest.mark.parametrize(
    "parts", [[np.arange(40, 100)], [np.arange(60), np.arange(60, 80)]], ids=["train", "validation"]
)
def test_a_split_names_cells_that_are_there(make_model, parts):
    """Before a step: minibatches before the one of such a cell would have been trained on."""
    model = make_model()
    split = {"external_indexing": parts}
    with pytest.raises(ValueError, match="external_indexing must lie between -60 and 59"):
        model.train(1, datasplitter_kwargs=split, **QUIET)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"n_refinement_steps": 100}, TypeError, "store refined posteriors first, minify_adata"),
        ({"gene_list": ["gene0", "a"]}, KeyError, "gene_list names 'a', which adata does not have"),
        ({"gene_list": "gene0"}, ValueError, r"write gene_list=\['gene0'\]"),
        (
            {"n_samples_overall": 5, "n_mc_samples": 5},
            TypeError,
            "it is an argument of weights='importance' and 'importance_by_cell'",
        ),
        ({"gene_list": []}, ValueError, "gene_list names no gene: name at least one"),
        ({"gene_list": [True]}, KeyError, "gene_list names True, which adata does not have"),
        ({"transform_batch": []}, ValueError, "transform_batch is an empty list: name at least"),
        ({"library_size": np.ones(3)}, ValueError, "library_size must be a finite number"),
        ({"gene_lst": ["a"]}, TypeError, "no gene_lst: that is no argument of get_norm"),
        (
            {"weights": "importance", "n_mc_samples": 5},
            TypeError,
            "'importance' and n_mc_samples need n_samples_overall",
        ),
        (
            {"weights": "importance", "n_samples_overall": 5, "n_refinement_steps": 5},
            TypeError,
            "takes no n_refinement_steps: its own arguments are max_cells",
        ),
        ({"n_samples_overall": 0}, ValueError, "n_samples_overall must be a whole number of at"),
        ({"n_samples_overall": 2.5}, ValueError, "n_samples_overall must be a whole number of at"),
        (
            {"library_size": "foo"},
            ValueError,
            "library_size must be a finite number above 0 or 'latent'",
        ),
        ({"library_size": np.inf}, ValueError, "library_size must be a finite number above 0"),
        (
            {"library_size": 0},
            ValueError,
            "library_size must be a finite number above 0 or 'latent'",
        ),
    ],
)
def test_arguments_that_expression_would_pass_over(make_model, arguments, error, sentence):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    with pytest.raises(error, match=sentence):
        model.get_normalized_expression(**arguments)


def test_counts_are_drawn_of_genes_that_are_there(make_model):
    model = make_model()
    model.train(1, **QUIET)
    for genes, error in ((["gene0", "a"], KeyError), ("gene0", ValueError)):
        with pytest.raises(error, match="gene_list"):
            model.posterior_predictive_sample(gene_list=genes)
    assert model.posterior_predictive_sample(gene_list=["gene3"]).shape == (60, 1)


def with_column(name, entry):
    """Data of which one cell has that entry in a column of obs."""
    adata = make_adata()
    adata.obs[name] = adata.obs[name].astype(object)
    adata.obs.loc["cell7", name] = entry
    return adata


@pytest.mark.parametrize(
    "setup",
    [
        {"batch_key": "donor"},
        {"labels_key": "donor"},
        {"categorical_covariate_keys": ["batch", "donor"]},
    ],
)
def test_cells_without_a_category(setup):
    adata = with_column("donor", np.nan)
    before = snapshot(adata)
    with pytest.raises(ValueError, match=r"adata\.obs\['donor'\] holds 1 missing entries \(NaN\)"):
        MixtureSCVI.setup_anndata(adata, **setup)
    assert_untouched(adata, before)


def test_masked_counts_are_refused():
    adata = make_adata()
    adata.X = np.ma.masked_array(adata.X.toarray(), mask=False)
    if not isinstance(adata.X, np.ma.MaskedArray):
        pytest.skip("this anndata keeps no masked arrays")
    with pytest.raises(ValueError, match=r"adata.X is a masked array: fill what is masked in firs"):
        MixtureSCVI.setup_anndata(adata)


@pytest.mark.parametrize("kind", [csr_array, csc_array])
def test_sparse_arrays_are_to_be_converted(make_model, kind):
    adata = make_adata()
    adata.X = kind(adata.X)
    adata.layers["counts"] = adata.X
    with pytest.raises(ValueError, match=r"adata\.X = scipy\.sparse\.csr_matrix\(adata\.X\)"):
        MixtureSCVI.setup_anndata(adata)
    with pytest.raises(ValueError, match=rf"adata\.layers\['counts'\] is a {kind.__name__}"):
        MixtureSCVI.setup_anndata(adata, layer="counts")
    with pytest.raises(ValueError, match=rf"adata\.X is a {kind.__name__}"):
        make_model(n_components=2).get_elbo(adata)
    assert not adata.uns
    adata.X = csr_matrix(adata.X)
    MixtureSCVI.setup_anndata(adata)


def test_sparse_counts_have_a_type_that_scipy_takes_rows_of(make_model):
    adata = make_adata()
    adata.X.data = adata.X.data.astype(np.float16)
    with pytest.raises(ValueError, match=r"float16.* adata\.X = adata\.X\.astype\('float32'\)"):
        MixtureSCVI.setup_anndata(adata)
    adata.X = adata.X.astype("float32")
    make_model(data=adata).train(1, **QUIET)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("continuous_covariate_keys", "age", r"takes a list .*continuous_covariate_keys=\['age'\]"),
        ("categorical_covariate_keys", "batch", r"takes a list .*_covariate_keys=\['batch'\]"),
        ("categorical_covariate_keys", ("batch",), r"takes a list .*_covariate_keys=\['batch'\]"),
        (
            "batch_key",
            ["batch"],
            r"batch_key takes one column of adata\.obs, but it is \['batch'\]",
        ),
    ],
)
def test_one_column_or_several(adata, name, column, message):
    before = snapshot(adata)
    with pytest.raises(ValueError, match=message):
        MixtureSCVI.setup_anndata(adata, **{name: column})
    assert_untouched(adata, before)


def test_columns_that_are_there_are_listed(adata, make_model):
    message = "no column 'no_such': it has cell_type, batch, donor, age, size"
    for name in ("batch_key", "labels_key", "size_factor_key"):
        with pytest.raises(KeyError, match=message):
            MixtureSCVI.setup_anndata(adata, **{name: "no_such"})
    for name in ("categorical_covariate_keys", "continuous_covariate_keys"):
        with pytest.raises(KeyError, match=message):
            MixtureSCVI.setup_anndata(adata, **{name: ["no_such"]})
    query = make_adata()
    del query.obs["age"]
    with pytest.raises(KeyError, match="no column 'age': it has cell_type, batch, donor, size"):
        make_model(continuous_covariate_keys=["age"]).get_elbo(query)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        ({"continuous_covariate_keys": ["size", "age"]}, "covariate .*categorical_covariate_keys"),
        ({"size_factor_key": "age"}, "size factor .*convert it to numbers above 0"),
    ],
)
def test_numbers_that_are_text(setup, message):
    kind, advice = message.split(" .*")
    adata = with_column("age", "old")
    MixtureSCVI.setup_anndata(adata, **setup)
    with pytest.raises(ValueError, match=rf"{kind} .*'age'\] holds 1 .*example 'old': .*{advice}"):
        MixtureSCVI(adata, n_hidden=8).train(1, **QUIET)
    numerals = make_adata()
    numerals.obs["age"] = numerals.obs["size"].astype(str)
    MixtureSCVI.setup_anndata(numerals, **setup)
    MixtureSCVI(numerals, n_hidden=8).train(1, **QUIET)
    assert np.isfinite(numerals.obsm["X_mix"]).all()


BAD_COLUMNS = [
    ("age", np.nan, {"continuous_covariate_keys": ["size", "age"]}, "covariate .*1 entries"),
    ("age", "old", {"continuous_covariate_keys": ["age"]}, "covariate .*example 'old'"),
    ("size", 0.0, {"size_factor_key": "size"}, "size factor .*1 entries"),
    ("batch", np.nan, {"batch_key": "batch"}, r"'batch'\] holds 1 missing"),
]


@pytest.mark.parametrize(("column", "entry", "setup", "message"), BAD_COLUMNS)
def test_query_cells_with_bad_columns(make_model, column, entry, setup, message):
    model = make_model(n_components=2, **setup)
    model.train(1, **QUIET)
    query = with_column(column, entry)
    before = snapshot(query)
    for method, arguments in (
        (model.get_latent_representation, {}),
        (model.get_elbo, {}),
        (model.get_marginal_ll, {"n_mc_samples": 4}),
        (model.get_normalized_expression, {}),
        (model.get_aggregated_posterior, {}),
    ):
        for cells in (query, query[:30]):
            with pytest.raises(ValueError, match=message):
                method(cells, **arguments)
    assert_untouched(query, before)
    assert np.isfinite(model.get_elbo(query[query.obs_names != "cell7"].copy()))


@pytest.mark.parametrize(("column", "entry", "setup", "message"), BAD_COLUMNS[:3])
def test_cells_of_a_loaded_model_with_bad_columns(
    make_model, tmp_path, column, entry, setup, message
):
    model = make_model(n_components=2, **setup)
    model.train(1, **QUIET)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        MixtureSCVI.load(tmp_path / "model", with_column(column, entry))


MASK = np.arange(60) % 4 == 1
BAD_INDICES = [
    ([], "indices chooses no cell"),
    (np.zeros(60, bool), "indices chooses no cell"),
    (MASK[:40], "indices is a mask, .*each of the 60 cells, but it has 40"),
    (list(MASK) * 2, "indices is a mask, .*each of the 60 cells, but it has 120"),
    (["cell1", "cell2"], r"but it is \['cell1', 'cell2'\]: .*get_indexer"),
    ([0.0, 1.0], r"a list of positions or a mask .* \[0\.0, 1\.0\]"),
    (3, "a list of positions or a mask .* is 3"),
    (np.where(MASK), "a list of positions or a mask"),
    (slice(0, 3), "a list of positions or a mask"),
    ([0, 60, 61], "between -60 and 59, .*2 of them do not, for example 60"),
    ([-61], "between -60 and 59, .*example -61"),
]


@pytest.mark.parametrize(("indices", "message"), BAD_INDICES)
def test_indices_that_are_no_cells(make_model, indices, message):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    for method, arguments in (
        (model.get_latent_representation, {}),
        (model.get_component_weights, {}),
        (model.get_posterior_diversity, {}),
        (model.get_elbo, {}),
        (model.get_reconstruction_error, {}),
        (model.get_marginal_ll, {"n_mc_samples": 4}),
        (model.get_normalized_expression, {}),
        (model.get_normalized_expression, {"n_samples_overall": 4, "weights": "importance"}),
        (model.get_feature_correlation_matrix, {}),
        (model.get_aggregated_posterior, {}),
    ):
        if np.size(indices) == 0 and method == model.get_aggregated_posterior:
            assert len(method(indices=indices).mixture_distribution.logits) == 2 * 60
            continue
        with pytest.raises(ValueError, match=message):
            method(indices=indices, **arguments)


@pytest.mark.parametrize(
    "indices",
    [MASK, list(MASK), MASK.tolist(), range(1, 60, 4), np.arange(1, 60, 4) - 60],
    ids=["mask", "list of numpy's bools", "list of bools", "range", "from the end"],
)
def test_indices_are_masks_or_positions(make_model, indices):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    found = model.get_latent_representation(indices=indices, batch_size=8)
    np.testing.assert_allclose(found, model.get_latent_representation()[MASK], atol=1e-6)
    expression = model.get_normalized_expression(indices=indices, batch_size=8)
    assert list(expression.index) == list(model.adata.obs_names[MASK])
    drawn = model.get_normalized_expression(
        indices=indices, n_samples_overall=20, weights="importance"
    )
    assert set(drawn.index) <= set(expression.index)


@pytest.mark.parametrize("value", [2.5, 0, True, "many"])
def test_numbers_of_draws(make_model, value):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    with pytest.raises(ValueError, match=f"n_mc_samples must be a whole number .* {value!r}"):
        model.get_marginal_ll(n_mc_samples=value)
    with pytest.raises(ValueError, match=f"n_samples must be a whole number .* {value!r}"):
        model.get_posterior_diversity(n_samples=value)
    with pytest.raises(ValueError, match=f"mc_samples must be a whole number .* {value!r}"):
        model.get_latent_representation(mc_samples=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groupby": "donor", "group1": "d7"}, r"'donor'\] has no cell of 'd7': .*'d0'"),
        ({"groupby": "donor", "group1": ["d0"], "group2": "d7"}, "has no cell of 'd7'"),
        ({"groupby": "donor", "group1": ["d0", "d8"], "group2": "d7"}, "cell of 'd8', 'd7'"),
        ({"groupby": "donor", "group1": "d0", "subset_idx": [5]}, "cell of 'd0': .*'other'"),
        ({"groupby": "tissue"}, "no column 'tissue': it has cell_type, batch, donor"),
        ({}, "name what to compare"),
        ({"idx1": []}, "idx1 chooses no cell"),
        ({"idx1": MASK | ~MASK}, "idx1 chooses all cells, so that there are none to compare"),
        ({"groupby": "species"}, r"all cells are 3 in adata.obs\['species'\]: there are none"),
        ({"groupby": "species", "group1": 4}, "has no cell of 4: its groups are 3"),
        (
            {"idx1": [f"cell{i}" for i in range(20)]},
            r"is array.*\.\.\.: the positions of names",
        ),
        ({"idx1": MASK, "idx2": ~MASK[:9]}, "idx2 is a mask, .* it has 9"),
    ],
)
def test_groups_that_are_not_there(make_model, arguments, message):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.adata.obs.loc["cell5", "donor"] = "d1"
    model.adata.obs["species"] = 3
    with pytest.raises((KeyError, ValueError), match=message):
        model.differential_expression(silent=True, **arguments)


def test_a_comparison_that_fails_leaves_obs_as_it_was(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    columns = list(model.adata.obs)
    with pytest.raises(TypeError, match="no_such_argument"):
        model.differential_expression(idx1=[0, 1], silent=True, no_such_argument=1)
    assert list(model.adata.obs) == columns


def test_a_category_without_cells_is_no_group(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.adata.obs["donor"] = model.adata.obs["donor"].cat.add_categories("d9")
    with pytest.raises(ValueError, match="has no cell of 'd9'"):
        model.differential_expression(groupby="donor", silent=True)
    for arguments in (
        {"groupby": "donor", "group1": "d1", "group2": "d2"},
        {"groupby": "donor", "group1": "d1", "subset_idx": MASK},
        {"idx1": MASK.tolist(), "idx2": np.flatnonzero(~MASK)},
        {"idx1": "donor == 'd1'"},
    ):
        assert len(model.differential_expression(silent=True, **arguments)) == 23


@pytest.mark.parametrize("jitter", [np.nan, np.inf, -1.0, "a", None, True])
def test_jitter_that_is_no_size(make_model, jitter):
    stock = make_model(SCVI)
    before = dict(stock.adata.uns)
    with pytest.raises(ValueError, match=f"jitter must be a finite .* but it is {jitter!r}"):
        MixtureSCVI.from_scvi_model(stock, 2, jitter=jitter)
    assert stock.adata.uns == before


@pytest.mark.parametrize("name", ["n_component", "dropout_rate", "use_batch_norm"])
def test_arguments_that_an_upgrade_does_not_take(make_model, name):
    stock = make_model(SCVI)
    before = dict(stock.adata.uns)
    with pytest.raises(TypeError, match=f"takes no {name}: .*n_components, n_importance_samples"):
        MixtureSCVI.from_scvi_model(stock, **{name: 3})
    assert stock.adata.uns == before


def test_a_model_is_not_saved_without_a_folder(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model(n_components=2)
    with pytest.raises(ValueError, match="dir_path is empty: name a folder"):
        model.save("")
    assert not list(tmp_path.iterdir())


def test_a_query_and_its_reference_in_each_other_s_place(make_model, tmp_path):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.save(tmp_path / "reference")
    folder, query = str(tmp_path / "reference"), make_adata()
    for arguments in ((folder, query), (model, query), (folder, folder)):
        kinds = " and a ".join(type(argument).__name__ for argument in arguments)
        with pytest.raises(ValueError, match=f"query cells first .* given a {kinds}"):
            MixtureSCVI.load_query_data(*arguments)
    with pytest.raises(ValueError, match="adata has no cells to map"):
        MixtureSCVI.load_query_data(query[:0].copy(), folder)
    with pytest.raises(ValueError, match="reference model was made without data"):
        MixtureSCVI.load_query_data(query, MixtureSCVI())
    assert not query.uns
    MixtureSCVI.load_query_data(query, folder)


def test_library_sizes_of_a_batch_need_a_width(make_model):
    adata = make_adata()
    adata.obs["batch"] = ["one"] + ["rest"] * (adata.n_obs - 1)
    model = make_model(data=adata, batch_key="batch", use_observed_lib_size=False)
    with pytest.raises(ValueError, match="all cells of batch 'one' have one library size, or it"):
        model.train(1, **QUIET)


@pytest.mark.parametrize("query", [
    "get_normalized_expression",
    "posterior_predictive_sample",
    "get_likelihood_parameters",
    "get_feature_correlation_matrix",
])  # fmt: skip
def test_draws_are_counted(make_model, query):
    model = make_model()
    model.train(1, latent_key=None, **QUIET)
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1, but it"):
        getattr(model, query)(n_samples=0)


def test_genes_are_chosen_before_registration(make_model):
    model = make_model()
    model.adata._inplace_subset_var(np.arange(5))
    with pytest.raises(ValueError, match="adata has 5 genes now and had 23 at setup_anndata"):
        model.train(1, **QUIET)
    model = make_model(data=make_adata())
    model.train(1, latent_key=None, **QUIET)
    model.adata._inplace_subset_var(np.arange(5))
    with pytest.raises(ValueError, match="adata has 5 genes now and had 23 at setup_anndata"):
        model.get_latent_representation()


def test_positions_are_no_data(make_model):
    model = make_model()
    model.train(1, latent_key=None, **QUIET)
    with pytest.raises(TypeError, match="adata must be an AnnData, but it is a list.*indices="):
        model.get_latent_representation([1, 2])


def test_groups_without_cells_have_a_cure(make_model):
    model = make_model()
    model.train(1, latent_key=None, **QUIET)
    model.adata.obs["cell_type"] = model.adata.obs["cell_type"].cat.add_categories("rare")
    with pytest.raises(ValueError, match=r"no cell of 'rare'.*remove_unused_categories\(\)"):
        model.differential_expression(groupby="cell_type", silent=True)


def test_a_layer_that_is_not_there(adata):
    adata.layers["counts"] = adata.X
    with pytest.raises(KeyError, match="adata has no layer 'count': it has counts"):
        MixtureSCVI.setup_anndata(adata, layer="count")


def test_columns_are_named_once(adata):
    with pytest.raises(ValueError, match="categorical_covariate_keys names 'donor' more than once"):
        MixtureSCVI.setup_anndata(adata, categorical_covariate_keys=["donor", "donor"])


def test_categories_have_an_order(adata):
    adata.obs["batch"] = [1, "1"] * (adata.n_obs // 2)
    with pytest.raises(ValueError, match=r"mixes text and numbers.*adata.obs\['batch'\].astype"):
        MixtureSCVI.setup_anndata(adata, batch_key="batch")


def test_counts_in_raw_are_not_a_layer(adata):
    adata.raw = adata.copy()
    with pytest.raises(
        KeyError, match=r"adata\.layers\['counts'\] = adata\.raw\[:, adata\.var_names"
    ):
        MixtureSCVI.setup_anndata(adata, layer="raw")


@pytest.mark.parametrize(
    ("column", "value", "holds"),
    [
        ("batch", "z", "'batch'. holds 'z', and the model knows 'x', 'y': name them"),
        ("donor", "d3", "'donor'. holds 'd3', and the model knows 'd0', 'd1', 'd2'"),
        ("cell_type", "d", "'cell_type'. holds 'd', and the model knows 'a', 'b', 'c'"),
        ("batch", 0, "'batch'. holds 0, and the model knows 'x', 'y'"),
    ],
)
def test_cells_of_a_category_that_the_model_does_not_know(make_model, column, value, holds):
    model = make_model(
        batch_key="batch", labels_key="cell_type", categorical_covariate_keys=["donor"]
    )
    model.is_trained_ = True
    other = make_adata(n_cells=20)
    other.obs[column] = value
    before = snapshot(other)
    with pytest.raises(ValueError, match=rf"{holds}.*load_query_data"):
        model.get_latent_representation(other)
    assert_untouched(other, before)


def test_a_batch_zero_that_the_model_does_not_know(make_model, adata):
    adata.obs["batch"] = adata.obs["batch"].cat.codes.astype(int) + 1
    model = make_model(batch_key="batch")
    other = make_adata(n_cells=20)
    other.obs["batch"] = 0  # which scvi-tools does not find missing
    with pytest.raises(ValueError, match="holds 0, and the model knows 1, 2"):
        model.get_normalized_expression(other)


@pytest.mark.parametrize("kind", [str, "category", "datetime64[ns]"])
def test_categories_of_any_kind_are_found_again(make_model, adata, kind):
    days = np.array(["2020-01-01", "2021-01-01"])[np.arange(60) % 2]
    adata.obs["batch"] = days
    adata.obs["batch"] = adata.obs["batch"].astype(kind)
    model = make_model(batch_key="batch")
    other = make_adata(n_cells=20)
    other.obs["batch"] = adata.obs["batch"].to_numpy()[:20]
    assert model.get_normalized_expression(other).shape == other.shape


def test_query_batches_are_text_or_numbers_as_the_references(make_model, adata):
    adata.obs["batch"] = adata.obs["batch"].cat.codes.astype(int)
    model = make_model(batch_key="batch")
    query = make_adata(n_cells=20)
    query.obs["batch"] = "2"
    before = snapshot(query)
    with pytest.raises(ValueError, match="holds '2', and the model knows 0, 1: make them text, or"):
        MixtureSCVI.load_query_data(query, model)
    assert_untouched(query, before)
    query.obs["batch"] = 2
    assert MixtureSCVI.load_query_data(query, model).summary_stats.n_batch == 3


def test_a_saved_model_takes_its_genes_in_its_order(make_model, tmp_path):
    make_model().save(tmp_path / "model")
    for other in (make_adata()[:, ::-1].copy(), make_adata()[:, :9].copy()):
        before = snapshot(other)
        with pytest.raises(ValueError, match=r"does not fit the model.*prepare_query_anndata"):
            MixtureSCVI.load(tmp_path / "model", adata=other)
        assert_untouched(other, before)
    renamed = make_adata()
    renamed.var_names = [f"ENSG{i}" for i in range(renamed.n_vars)]
    with pytest.warns(UserWarning, match="var_names"):
        MixtureSCVI.load(tmp_path / "model", adata=renamed)


def test_one_modality_is_taken(adata):
    mudata = pytest.importorskip("mudata")  # scvi-tools brings it
    both = mudata.MuData({"rna": adata, "protein": make_adata(seed=1)})
    with pytest.raises(ValueError, match=r"takes one modality of it, an AnnData: adata\['rna'\]"):
        MixtureSCVI.setup_anndata(both)


def test_models_of_another_class_are_loaded_by_it(make_model, tmp_path):
    model = make_model(SCVI)
    model.save(tmp_path / "scvi")
    query = make_adata(n_genes=30)
    subset = {"inplace_subset_query_vars": True}
    for read in (
        lambda: MixtureSCVI.load(tmp_path / "scvi", adata=query),
        lambda: MixtureSCVI.load_query_data(query, model, **subset),
        lambda: MixtureSCVI.load_query_data(query, tmp_path / "scvi", **subset),
    ):
        with pytest.raises(
            ValueError, match=r"no MixtureSCVI, but of class SCVI: load an .*from_scvi_model"
        ):
            read()
        assert query.shape == (60, 30)
    with pytest.raises(ValueError, match=r"\(scvi\.model\.SCVI\.load\), but it is given a str"):
        MixtureSCVI.from_scvi_model("scvi")


def test_expression_of_a_model_that_is_not_trained(make_model):
    model = make_model()
    with pytest.warns(UserWarning, match="untrained model"):
        model.get_normalized_expression()
    with pytest.warns(UserWarning, match="untrained model"):
        model.differential_expression(groupby="cell_type", silent=True)


def test_cells_that_are_registered_keep_their_categories(make_model):
    """Labels may be written anew between questions, and new ones registered by hand."""
    model = make_model(labels_key="cell_type")
    model.train(1, **QUIET)
    query, extended = make_adata(n_cells=20), make_adata(n_cells=20)
    before = model.get_latent_representation(query)
    query.obs["cell_type"] = "annotated"
    np.testing.assert_array_equal(model.get_latent_representation(query), before)
    extended.obs["cell_type"] = "new"
    manager = model.adata_manager.transfer_fields(extended, extend_categories=True)
    model._register_manager_for_instance(manager)
    np.testing.assert_array_equal(model.get_latent_representation(extended), before)

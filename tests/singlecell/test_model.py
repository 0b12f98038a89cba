"""MixtureSCVI as users meet it: training, latents, files, scArches, SCVI and back."""

import datetime
import errno
import inspect
import math
import os
import pickle
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import scvi
import torch
from scvi.dataloaders import DataSplitter
from scvi.model import SCANVI, SCVI
from scvi.train import TrainingPlanConfig
from torch.distributions import Normal
from torch.nn import functional

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI
from scmixvi.singlecell._checks.groups import check_samples
from scmixvi.singlecell._exchange.files import element_wise
from scmixvi.singlecell._exchange.twins import one_of_components
from scmixvi.singlecell._queries.groups import GroupPosteriors


@pytest.fixture
def trained(make_model):
    model = make_model(n_components=3, batch_key="batch", labels_key="cell_type")
    model.train(3, **QUIET)
    return model


# ------------------------------------------------------------------ training


def test_training_stores_the_latents(trained, adata):
    assert adata.obsm["X_mix"].shape == (60, 3)
    np.testing.assert_array_equal(adata.obsm["X_mix"], trained.get_latent_representation())


def test_latent_key_is_overwritten_or_left_alone(make_model, adata):
    model = make_model(n_components=2)
    adata.obsm["mine"] = np.zeros((60, 1))
    model.train(1, latent_key="mine", **QUIET)
    assert adata.obsm["mine"].shape == (60, 3)
    before = set(adata.obsm)
    model.train(1, latent_key=None, **QUIET)
    assert set(adata.obsm) == before
    for wrong in (3, "", "X/mix"):
        with pytest.raises(ValueError, match="latent_key must be the name"):
            model.train(1, latent_key=wrong, **QUIET)


def kl_weights(model):
    return [float(w) for w in np.asarray(model.history_["kl_weight"]).ravel()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 1 / 2, 1, 1, 1, 1, 1, 1]),
        ({"plan_kwargs": {"n_epochs_kl_warmup": 4}}, [0, 1 / 4, 1 / 2, 3 / 4, 1, 1, 1, 1]),
        ({"plan_kwargs": {"n_epochs_kl_warmup": None}}, [1] * 8),
        ({"plan_config": TrainingPlanConfig(lr=0.01)}, [0, 1 / 2, 1, 1, 1, 1, 1, 1]),
        (
            {"plan_config": TrainingPlanConfig(n_epochs_kl_warmup=1)},
            [0, 1, 1, 1, 1, 1, 1, 1],
        ),
        ({"plan_kwargs": {"max_kl_weight": 0.5}}, [0, 1 / 4] + [1 / 2] * 6),
        (
            {"plan_kwargs": {"n_epochs_kl_warmup": 4, "min_kl_weight": 0.2}},
            [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1],
        ),
    ],
)
def test_kl_weight_reaches_1_in_a_quarter_of_the_epochs(make_model, arguments, expected):
    model = make_model(n_components=2)
    model.train(8, log_every_n_steps=1, **QUIET, **arguments)
    assert kl_weights(model) == pytest.approx(expected)


def test_kl_weight_reaches_1_in_a_quarter_of_the_steps_if_these_end_training(make_model):
    model = make_model(n_components=2)
    model.train(max_steps=12, batch_size=32, log_every_n_steps=1, **QUIET)
    weights = kl_weights(model)
    assert len(weights) < 12, "one an epoch"
    assert weights[0] < 1
    assert weights[-1] == 1


@pytest.mark.parametrize("how", ["again", "loaded", "from SCVI"])
def test_a_trained_model_goes_on_at_kl_weight_1(make_model, adata, tmp_path, how):
    model = make_model(n_components=2)
    model.train(4, log_every_n_steps=1, **QUIET)
    if how == "loaded":
        model.save(tmp_path / "model")
        model = MixtureSCVI.load(tmp_path / "model", adata)
    elif how == "from SCVI":
        model = MixtureSCVI.from_scvi_model(model.to_scvi(), 2)
    model.train(8, log_every_n_steps=1, **QUIET)
    assert kl_weights(model)[-8:] == [1] * 8
    model.train(8, log_every_n_steps=1, plan_kwargs={"n_epochs_kl_warmup": 8}, **QUIET)
    assert kl_weights(model)[-8:] == pytest.approx(np.arange(8) / 8)


def test_positional_arguments_and_bad_ones_are_those_of_scvi(make_model):
    model = make_model(n_components=2)
    model.train(1, "cpu", 1, 0.7, **{k: v for k, v in QUIET.items() if k != "accelerator"})
    assert len(model.train_indices) == 42
    with pytest.raises(TypeError, match="no_such_argument"):
        model.train(1, no_such_argument=1)


def test_training_improves_the_bound(make_model):
    model = make_model(n_components=3)
    model.train(1, **QUIET)
    before = np.mean([float(model.get_elbo()) for _ in range(5)])
    model.train(60, **QUIET)
    assert np.mean([float(model.get_elbo()) for _ in range(5)]) > before + 2


@pytest.mark.parametrize("how", ["again", "loaded", "from SCVI"])
def test_training_again_is_training(make_model, adata, tmp_path, how):
    """Batch statistics are gathered, as in the first training."""
    model = make_model(n_components=2)
    model.train(1, train_size=1.0, **QUIET)
    assert not model.module.training
    if how == "loaded":
        model.save(tmp_path / "model")
        model = MixtureSCVI.load(tmp_path / "model", adata)
    elif how == "from SCVI":
        model = MixtureSCVI.from_scvi_model(model.to_scvi(), 2)
    counter = model.module.z_encoder_1.encoder.fc_layers[0][1].num_batches_tracked
    before = int(counter)
    model.train(3, train_size=1.0, **QUIET)
    assert int(counter) == before + 3
    assert not model.module.training


def test_early_stopping_watches_the_bound(make_model):
    model = make_model(n_components=2)
    model.train(
        30,
        early_stopping=True,
        early_stopping_patience=2,
        early_stopping_min_delta=1e6,
        check_val_every_n_epoch=1,
        **QUIET,
    )
    assert len(model.history_["elbo_validation"]) <= 4


def test_same_seed_same_result(make_model):
    results = []
    for _ in range(2):
        scvi.settings.seed = 3
        model = make_model(n_components=3)
        model.train(2, **QUIET)
        results.append(model.get_latent_representation())
    np.testing.assert_array_equal(*results)


# ------------------------------------------------------------------ a cell's posterior


@pytest.mark.parametrize("weights", ["uniform", "amortized", [0.2, 0.3, 0.5]])
def test_representations_agree(make_model, weights):
    model = make_model(n_components=3, mixture_weights=weights)
    model.train(2, **QUIET)
    mean = model.get_latent_representation()
    components = model.get_latent_representation(representation="components")
    params = model.get_latent_representation(representation="params")
    assert (mean.shape, components.shape) == ((60, 3), (60, 9))
    np.testing.assert_array_equal(params[:, :9], components)
    pi = model.get_component_weights()
    locs, variances = params.reshape(60, 2, 3, 3).transpose(1, 0, 2, 3)
    expected = (pi[:, :, None] * locs).sum(1)
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    found_mean, found_variance = model.get_latent_representation(return_dist=True)
    between = (locs - expected[:, None]) ** 2
    np.testing.assert_allclose(found_mean, mean, atol=1e-6)
    np.testing.assert_allclose(
        found_variance, (pi[:, :, None] * (variances + between)).sum(1), rtol=1e-4
    )
    part = model.get_latent_representation(indices=[5, 2], representation="components")
    np.testing.assert_allclose(part, components[[5, 2]], atol=1e-6)


def test_posterior_diversity_is_the_jsd(trained):
    diversity = trained.get_posterior_diversity(n_samples=400)
    assert diversity.shape == (60,)
    assert (diversity > 0).all()
    assert (diversity < math.log(3)).all()
    params = torch.from_numpy(trained.get_latent_representation(representation="params"))
    locs, scales = params.reshape(60, 2, 3, 3).movedim(1, 0)
    q = Normal(locs.unsqueeze(1), scales.sqrt().unsqueeze(1))
    z = Normal(locs, scales.sqrt()).sample((2000,))
    log_q = q.log_prob(z.unsqueeze(3)).sum(-1)
    own = log_q.diagonal(dim1=2, dim2=3)
    expected = (own - log_q.logsumexp(3) + math.log(3)).mean((0, 2))
    np.testing.assert_allclose(diversity, expected.numpy(), atol=0.05)


def test_equal_components_have_no_diversity(make_model):
    stock = make_model(SCVI)
    stock.train(1, **QUIET)
    same = MixtureSCVI.from_scvi_model(stock, n_components=3, jitter=0.0)
    np.testing.assert_allclose(same.get_posterior_diversity(), 0, atol=1e-5)
    np.testing.assert_allclose(
        same.get_latent_representation(), stock.get_latent_representation(), atol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "density"), [({"dof": None}, scipy.stats.norm), ({}, partial(scipy.stats.t, 3.0))]
)
def test_aggregated_posterior_is_the_average_of_the_mixtures(make_model, arguments, density):
    model = make_model(n_components=3, mixture_weights="amortized")
    torch.nn.init.normal_(model.module.eval().weight_encoder.weight)
    model.is_trained_ = True
    indices, z = np.array([3, 7, 11]), torch.randn(5, 3)
    aggregated = model.get_aggregated_posterior(indices=indices, **arguments)
    with torch.inference_mode():
        qz = next(model._posteriors(indices=indices))
    of_component = density(qz.c_loc.numpy(), qz.c_scale.numpy()).pdf(z.numpy()[:, None, None])
    weights = model.get_component_weights(indices=indices)
    expected = (weights * of_component.prod(-1)).sum(-1).mean(-1)
    np.testing.assert_allclose(aggregated.log_prob(z), np.log(expected), rtol=1e-4)
    assert model.get_aggregated_posterior().mixture_distribution.logits.shape == (180,)


def test_differential_abundance_uses_it(trained, adata):
    trained.differential_abundance(sample_key="donor")
    table = adata.obsm["da_log_probs"]
    assert table.shape == (60, 3)
    donor = adata.obs["donor"].unique()[1]
    indices = np.flatnonzero(adata.obs["donor"] == donor)
    expected = trained.get_aggregated_posterior(indices=indices, dof=None).log_prob(
        torch.from_numpy(adata.obsm["X_mix"])
    )
    np.testing.assert_allclose(table[donor], expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("column", "arguments", "sentence"),
    [
        (None, {}, "name the samples: sample_key, one column of adata.obs, but it is None"),
        ("absent", {}, "adata.obs has no column 'absent': it has "),
        ("some", {}, r"2 of 60 cells have no sample in adata.obs\['some'\]: leave them out"),
        ("donor", {"num_cells_posterior": 0}, "num_cells_posterior must be a whole number of at"),
        ("donor", {"dof": -1.0}, "dof, the degrees of freedom, must be a finite number above 0"),
    ],
)
def test_samples_that_are_not_there_score_no_cell(trained, adata, column, arguments, sentence):
    """scvi-tools scores cells without a sample by all cells."""
    adata.obs["some"] = adata.obs["donor"].where(np.arange(60) > 1)
    with pytest.raises((KeyError, ValueError), match=sentence):
        trained.differential_abundance(sample_key=column, **arguments)
    assert "da_log_probs" not in adata.obsm


def test_scvi_tools_scores_cells_without_a_sample_by_all_cells(trained, adata):
    """For what is refused above: an empty sample is all cells there."""
    adata.obs["some"] = adata.obs["donor"].where(np.arange(60) > 1)
    super(GroupPosteriors, trained).differential_abundance(sample_key="some")
    table = adata.obsm["da_log_probs"]
    everything = trained.get_aggregated_posterior(dof=None)
    expected = everything.log_prob(torch.from_numpy(adata.obsm["X_mix"]))
    np.testing.assert_allclose(table.loc[:, table.columns.isna()].iloc[:, 0], expected, rtol=1e-4)


def test_cells_are_not_scored_by_samples_that_have_none(adata):
    """scvi-tools 1.5 learns from some cells and scores others; from no cells it learns of all."""
    first = adata.obs["donor"].unique()[0]
    learned = adata[adata.obs["donor"] != first]
    check_samples("donor", adata, learned)
    with pytest.raises(ValueError, match=rf"\['donor'\] has no cell of {first!r}, by which cells"):
        check_samples("donor", learned, adata)


@pytest.mark.parametrize("dof", [0, -1.0, np.inf, np.nan, "3", True])
def test_degrees_of_freedom_are_above_0(trained, dof):
    with pytest.raises(ValueError, match=f"a finite number above 0, or None .* it is {dof!r}"):
        trained.get_aggregated_posterior(dof=dof)


@pytest.mark.parametrize("pooled", [True, False])
def test_marginal_likelihood_exceeds_the_bound(trained, pooled):
    found = trained.get_marginal_ll(n_mc_samples=300, pooled=pooled)
    assert found > np.mean([float(trained.get_elbo()) for _ in range(10)])
    by_cell = trained.get_marginal_ll(n_mc_samples=300, return_mean=False, pooled=pooled)
    assert by_cell.shape == (60,)
    assert by_cell.mean().item() == pytest.approx(found, abs=0.2)


def test_expression_and_importance_weights(trained):
    plain = trained.get_normalized_expression(n_samples=5)
    np.testing.assert_allclose(plain.sum(1), 1, rtol=1e-4)
    weighted = trained.get_normalized_expression(
        n_samples_overall=50, weights="importance", return_numpy=True
    )
    assert weighted.shape == (50, 23)
    np.testing.assert_allclose(weighted.sum(1), 1, rtol=1e-4)


@pytest.mark.parametrize("n_samples", [1, 5])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "normal"])
def test_every_likelihood_has_its_parameters(make_model, likelihood, n_samples):
    model = make_model(n_components=1, gene_likelihood=likelihood)
    model.train(1, **QUIET)
    found = model.get_likelihood_parameters(n_samples=n_samples, batch_size=7)
    names = {"zinb": {"mean", "dropout", "dispersions"}, "poisson": {"mean"}}
    assert found.keys() == names.get(likelihood, {"mean", "dispersions"})
    shape = (60, 23) if n_samples == 1 else (5, 60, 23)
    assert all(values.shape == shape for values in found.values())
    averaged = model.get_likelihood_parameters(n_samples=n_samples, give_mean=True)
    assert all(values.shape == (60, 23) for values in averaged.values())


def test_parameters_of_poisson_and_normal_are_rates_and_deviations(make_model):
    for likelihood in ("poisson", "normal"):
        model = make_model(n_components=2, gene_likelihood=likelihood)
        model.train(1, **QUIET)
        torch.manual_seed(0)
        found = model.get_likelihood_parameters(indices=[4, 2, 7])
        torch.manual_seed(0)
        rates = model.get_normalized_expression(indices=[4, 2, 7], library_size="latent")
        np.testing.assert_array_equal(found["mean"], rates)
        if likelihood == "normal":
            deviations = model.module.px_r.detach().exp().expand(3, -1)
            np.testing.assert_allclose(found["dispersions"], deviations, rtol=1e-6)
        with pytest.raises(ValueError, match=f"gene_likelihood is '{likelihood}'.*'zinb' or 'nb'"):
            model.get_feature_correlation_matrix()


@pytest.mark.parametrize("value", ["stratified", 1, None])
def test_draws_are_pooled_or_not(trained, value):
    with pytest.raises(ValueError, match=f"pooled must be True or False, but it is {value!r}"):
        trained.get_marginal_ll(n_mc_samples=4, pooled=value)


def test_inherited_and_overridden_methods():
    for name in ("get_elbo", "get_reconstruction_error", "posterior_predictive_sample"):
        assert name not in vars(MixtureSCVI)
    for name in ("get_latent_representation", "get_aggregated_posterior", "minify_adata"):
        theirs = inspect.signature(getattr(SCVI, name)).parameters
        ours = inspect.signature(getattr(MixtureSCVI, name)).parameters
        assert [p for p in ours if p in theirs] == list(theirs)


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("weights", ["learned", "amortized", [0.2, 0.3, 0.5], "uniform"])
def test_save_and_load(make_model, adata, tmp_path, weights):
    model = make_model(n_components=3, n_importance_samples=2, mixture_weights=weights)
    model.train(2, **QUIET)
    model.save(tmp_path / "model", save_anndata=True)
    for data in (None, adata):
        loaded = MixtureSCVI.load(tmp_path / "model", data)
        module = loaded.module
        assert (module.n_components, module.n_importance_samples) == (3, 2)
        assert module.mixture_weights == model.module.mixture_weights
        np.testing.assert_allclose(
            loaded.get_latent_representation(), adata.obsm["X_mix"], atol=1e-6
        )
        np.testing.assert_allclose(
            loaded.get_component_weights(), model.get_component_weights(), atol=1e-6
        )


def test_saving_replaces_only_by_whole_files(trained, tmp_path, monkeypatch):
    target = tmp_path / "model"
    trained.save(target)
    good = (target / "model.pt").read_bytes()
    with pytest.raises(ValueError, match="already exists"):
        trained.save(target)

    def half_written(content, path, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        trained.save(target, overwrite=True)
    assert (target / "model.pt").read_bytes() == good
    assert os.listdir(tmp_path) == ["model"]


def test_saving_through_a_link_to_another_file_system(trained, adata, tmp_path, monkeypatch):
    """Files can only be replaced by those of the same file system, so they are written there."""
    for name in ("home", "disk"):
        os.mkdir(tmp_path / name)
    os.symlink(tmp_path / "disk" / "model", tmp_path / "home" / "model")
    replace = os.replace

    def within_one_disk(source, target):
        if (tmp_path / "disk") not in Path(source).parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", within_one_disk)
    for _ in range(2):
        trained.save(tmp_path / "home" / "model", overwrite=True)
        MixtureSCVI.load(tmp_path / "home" / "model", adata)
    assert os.listdir(tmp_path / "disk") == ["model"]
    assert os.listdir(tmp_path / "disk" / "model") == ["model.pt"]


def test_saving_takes_arguments_by_place_as_scvi_does(trained, tmp_path):
    trained.save(tmp_path / "model", "a_", True, True)
    assert sorted(os.listdir(tmp_path / "model")) == ["a_adata.h5ad", "a_model.pt"]


CATEGORIES = {
    "intervals": [pd.Interval(0, 1), pd.Interval(1, 2.5)],
    "dates": [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)],
    "times": [datetime.datetime(2024, 1, 1, 3), datetime.datetime(2024, 1, 2)],
    "time stamps": [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")],
    "spans": [datetime.timedelta(1), datetime.timedelta(2)],
}


@pytest.mark.parametrize("categories", CATEGORIES.values(), ids=CATEGORIES)
def test_categories_of_every_kind_are_saved(make_model, adata, tmp_path, categories):
    codes = adata.obs["batch"].cat.codes
    adata.obs["when"] = pd.Series([categories[i] for i in codes], adata.obs_names, dtype=object)
    make_model(n_components=2, batch_key="when").save(tmp_path / "model")
    loaded = MixtureSCVI.load(tmp_path / "model", adata)
    saved = loaded.adata_manager.get_state_registry("batch").categorical_mapping
    assert pd.Index(saved).equals(pd.Index(categories))


@pytest.mark.parametrize(
    "arguments",
    [
        *({"var_activation": f} for f in (torch.exp, torch.sigmoid, functional.relu)),
        *({"var_activation": f} for f in (functional.softplus, torch.nn.Softplus())),
        *(
            {"extra_decoder_kwargs": {"activation_fn": cls}}
            for cls in (torch.nn.Identity, torch.nn.ELU)
        ),
    ],
    ids=["exp", "sigmoid", "relu", "softplus", "Softplus", "Identity", "ELU"],
)
def test_activations_are_saved(make_model, adata, tmp_path, arguments):
    make_model(n_components=2, **arguments).save(tmp_path / "model")
    module = MixtureSCVI.load(tmp_path / "model", adata).module
    if "var_activation" in arguments:
        found, expected = module.z_encoder_1.var_activation, arguments["var_activation"]
        assert found is expected or type(found) is type(expected) is torch.nn.Softplus


def test_saving_refuses_what_loading_would(make_model, adata, tmp_path):
    """While the model is still there, and what was saved before too."""
    make_model(n_components=2).save(tmp_path / "model")
    good = (tmp_path / "model" / "model.pt").read_bytes()
    model = make_model(n_components=2, var_activation=torch.cosh)
    for name in ("model", "new"):
        with pytest.raises(ValueError, match=r"not saved.*names builtins\.getattr.*Use categories"):
            model.save(tmp_path / name, overwrite=True)
    assert (tmp_path / "model" / "model.pt").read_bytes() == good
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_names_functions_of_torch_only_from_a_list():
    assert element_wise("tanh") is torch.tanh
    with pytest.raises(ValueError, match="'load' is none of torch's abs, "):
        element_wise("load")


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_damaged_files_are_named(trained, adata, tmp_path, content):
    trained.save(tmp_path / "model")
    path = tmp_path / "model" / "model.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match="is damaged or not a saved model"):
        MixtureSCVI.load(tmp_path / "model", adata)


def test_a_foreign_pickle_is_not_a_model(adata, tmp_path):
    os.mkdir(tmp_path / "model")
    (tmp_path / "model" / "model.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is damaged or not a saved model"):
        MixtureSCVI.load(tmp_path / "model", adata)


def test_a_missing_file_is_named(adata, tmp_path):
    with pytest.raises(ValueError, match="Failed to load model file"):
        MixtureSCVI.load(tmp_path / "nothing", adata)


# ------------------------------------------------------------------ scArches, minified data


@pytest.mark.parametrize("from_disk", [True, False])
def test_scarches_trains_only_the_query_weights(make_model, adata, tmp_path, from_disk):
    model = make_model(
        n_components=3, batch_key="batch", encode_covariates=True, mixture_weights="amortized"
    )
    model.train(2, **QUIET)
    model.save(tmp_path / "model")
    query = make_adata(seed=1)
    query.obs["batch"] = query.obs["batch"].cat.rename_categories(["new1", "new2"])
    reference = tmp_path / "model" if from_disk else model
    mapped = MixtureSCVI.load_query_data(query, reference)
    assert mapped.module.n_components == 3
    before = {k: v.clone() for k, v in mapped.module.named_parameters()}
    mapped.train(2, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    for s in range(3):
        name = "z_encoder" if s == 0 else f"z_encoder_{s}"
        weight = f"{name}.encoder.fc_layers.Layer 0.0.weight"
        change = dict(mapped.module.named_parameters())[weight] - before[weight]
        assert not change[:, :23].any(), "expression weights are frozen in every component"
        assert change[:, 25:].any(), "the new batches' weights are trained in every component"
        head = f"{name}.mean_encoder.weight"
        assert torch.equal(dict(mapped.module.named_parameters())[head], before[head])
    assert query.obsm["X_mix"].shape == (60, 3)


def test_query_with_other_genes_is_refused(trained):
    query = make_adata(seed=1)
    query.var_names = ["other" + name if i < 2 else name for i, name in enumerate(query.var_names)]
    with pytest.raises(ValueError, match=r"2 of the model's 23 genes are missing.*'gene0'"):
        MixtureSCVI.load_query_data(query, trained)
    MixtureSCVI.prepare_query_anndata(query, trained)
    MixtureSCVI.load_query_data(query, trained)


@pytest.mark.parametrize("weights", ["uniform", "amortized", "learned"])
@pytest.mark.parametrize("kind", ["", "_with_counts"])
def test_minified_data_keep_every_component(make_model, weights, kind):
    model = make_model(n_components=3, mixture_weights=weights)
    model.train(2, **QUIET)
    params = model.get_latent_representation(representation="params")
    pi, full = model.get_component_weights(), model.adata
    model.minify_adata("latent_posterior_parameters" + kind)
    assert "X_latent_qzm" not in full.obsm, "the full data are as they were"
    assert "X_latent_qzm" not in model.adata.obsm
    assert model.adata.obsm["scvi_latent_qzv"].shape == (60, 9)
    np.testing.assert_allclose(
        model.get_latent_representation(representation="params"), params, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(model.get_component_weights(), pi, rtol=1e-4)
    assert model.get_normalized_expression(n_samples=4).shape == (60, 23)
    assert model.get_posterior_diversity().shape == (60,)
    if kind:
        assert math.isfinite(model.get_elbo())
    else:
        with pytest.raises(ValueError, match="minified"):
            model.get_elbo()


def test_a_stored_single_gaussian_is_one_component(trained):
    qz = trained.module.unpack_posterior(torch.zeros(4, 3), torch.ones(4, 3))
    assert qz.c_loc.shape == (4, 1, 3)
    torch.testing.assert_close(qz.c_log_weights, torch.zeros(4, 1))


# ------------------------------------------------------------------ models without data


def test_without_adata_the_module_is_made_by_training(adata):
    MixtureSCVI.setup_anndata(adata)
    manager = MixtureSCVI(adata, n_hidden=8).adata_manager
    datamodule = DataSplitter(manager)
    datamodule.n_vars, datamodule.n_batch, datamodule.n_obs = 23, 1, 60
    with pytest.warns(UserWarning, match="without `adata`"):
        model = MixtureSCVI(n_hidden=8, n_components=3, mixture_weights="learned")
    assert type(model) is MixtureSCVI
    model.train(2, datamodule=datamodule, **QUIET)
    assert model.module.n_components == 3
    assert model.module.mixture_logits.shape == (3,)


def test_neither_adata_nor_a_registry_is_needed_to_fail_clearly():
    with pytest.raises(ValueError, match="n_components"):
        MixtureSCVI(n_components=0)


# ------------------------------------------------------------------ SCVI and back


def test_from_scvi_model_starts_where_scvi_ended(make_model, adata):
    stock = make_model(SCVI, batch_key="batch", use_batch_norm="encoder", gene_likelihood="nb")
    stock.train(3, **QUIET)
    model = MixtureSCVI.from_scvi_model(stock, 4, mixture_weights="learned")
    assert model.is_trained
    assert model.module.gene_likelihood == "nb"
    assert model.init_params_["kwargs"]["kwargs"]["use_batch_norm"] == "encoder"
    theirs, ours = stock.module.state_dict(), model.module.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    diversity = model.get_posterior_diversity()
    assert 0 < diversity.mean() < 0.5 * math.log(4)
    model.train(1, **QUIET)
    assert adata.obsm["X_mix"].shape == (60, 3)


def test_jitter_is_a_share_of_the_spread_of_the_weights(make_model):
    stock = make_model(SCVI, n_hidden=64, n_latent=10)
    module = MixtureSCVI.from_scvi_model(stock, 2, jitter=0.1).module
    own, other = (e.mean_encoder.weight.detach() for e in module.z_encoders)
    assert (other - own).std().item() == pytest.approx(0.1 * own.std().item(), rel=0.2)


def test_an_upgrade_and_what_is_handed_back_keep_the_split(make_model):
    stock = make_model(SCVI)
    stock.train(1, **QUIET)
    model = MixtureSCVI.from_scvi_model(stock, 2)
    for other in (model, model.to_scvi(0)):
        np.testing.assert_array_equal(other.train_indices, stock.train_indices)
        np.testing.assert_array_equal(other.validation_indices, stock.validation_indices)


def test_from_scvi_model_refuses_other_models(trained):
    with pytest.raises(ValueError, match=r"takes an scvi\.model\.SCVI"):
        MixtureSCVI.from_scvi_model(trained)


@pytest.mark.parametrize("component", [0, 2, np.int64(1), None])
def test_to_scvi_is_that_component(trained, component):
    stock = trained.to_scvi(component)
    assert type(stock) is SCVI
    means = trained.get_latent_representation(representation="components").reshape(60, 3, 3)
    chosen = trained._best_component(trained.adata) if component is None else component
    np.testing.assert_allclose(stock.get_latent_representation(), means[:, chosen], atol=1e-5)
    state = MixtureSCVI.from_scvi_model(stock, 1).module.state_dict()
    torch.testing.assert_close(state, stock.module.state_dict(), rtol=0, atol=0)


def test_scanvi_starts_from_to_scvi(trained):
    scanvi = SCANVI.from_scvi_model(trained.to_scvi(), unlabeled_category="a")
    scanvi.train(1, **QUIET)
    assert len(scanvi.predict()) == 60


@pytest.mark.parametrize("component", [3, -1, 1.0, np.float64(2), True, np.True_, "1"])
def test_to_scvi_names_the_components(trained, component):
    with pytest.raises(ValueError, match="component must be one of 0 to 2, but it is"):
        trained.to_scvi(component)


def test_weights_without_that_component_are_refused():
    with pytest.raises(ValueError, match="no component 7"):
        one_of_components({"z_encoder.a": torch.zeros(1)}, 7)


@pytest.mark.parametrize("weights", ["uniform", "amortized"])
@pytest.mark.parametrize("kind", ["", "_with_counts"])
def test_to_scvi_of_minified_data_is_that_component(make_model, weights, kind):
    model = make_model(n_components=3, mixture_weights=weights)
    model.train(2, **QUIET)
    params = model.get_latent_representation(representation="params").reshape(60, 2, 3, 3)
    model.minify_adata("latent_posterior_parameters" + kind)
    stock = model.to_scvi(1)
    mean, variance = stock.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(mean, params[:, 0, 1], atol=1e-6)
    np.testing.assert_allclose(variance, params[:, 1, 1], rtol=1e-4)
    assert stock.get_normalized_expression().shape == (60, 23)
    assert model.adata.obsm["scvi_latent_qzv"].shape == (60, 9)
    assert model.get_component_weights().shape == (60, 3)
    if kind:
        assert type(model.to_scvi()) is SCVI
    else:
        with pytest.raises(ValueError, match="minified without counts.*name one of 0 to 2"):
            model.to_scvi()


def test_to_scvi_of_a_model_without_data(trained, adata, tmp_path):
    trained.save(tmp_path / "model")
    best = trained._best_component(adata)
    loaded = MixtureSCVI.load(tmp_path / "model", adata=False)
    for component in (None, 1):
        with pytest.raises(ValueError, match="the model carries no adata: pass"):
            loaded.to_scvi(component)
    stock = loaded.to_scvi(adata=make_adata())
    means = trained.get_latent_representation(representation="components").reshape(60, 3, 3)
    np.testing.assert_allclose(stock.get_latent_representation(), means[:, best], atol=1e-5)


def test_the_best_component_is_the_same_every_time_and_has_weight(make_model):
    """And asking for it leaves the random numbers alone."""
    model = make_model(n_components=3, mixture_weights=[0.0, 0.5, 0.5])
    model.train(1, **QUIET)
    with torch.no_grad():
        for encoder in model.module.z_encoders[1:]:
            encoder.mean_encoder.bias.add_(5.0)
    before = torch.get_rng_state()
    best = {model._best_component(model.adata) for _ in range(5)}
    assert len(best) == 1
    assert best < {1, 2}
    assert torch.equal(torch.get_rng_state(), before)


def test_the_best_component_has_the_best_bound(trained):
    with torch.no_grad():
        for name, parameter in trained.module.named_parameters():
            if name.startswith(("z_encoder.mean_encoder", "z_encoder_1.mean_encoder")):
                parameter.add_(5.0)
    assert trained._best_component(trained.adata) == 2


def test_the_best_component_is_judged_by_all_cells_of_small_data(make_model, monkeypatch):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    asked, load = [], model._make_data_loader

    def spy(**arguments):
        asked.extend(arguments["indices"])
        return load(**arguments)

    monkeypatch.setattr(model, "_make_data_loader", spy)
    model.to_scvi()
    assert sorted(set(asked)) == list(range(60))


def test_a_mixture_has_four_components_by_default(make_model):
    module = make_model().module
    assert (module.n_components, module.n_importance_samples) == (4, 1)


def test_summary_names_the_mixture(trained, capsys):
    repr(trained)
    shown = " ".join(capsys.readouterr().out.split())
    assert "MixtureSCVI model" in shown
    assert "n_components: 3" in shown


def test_real_counts_end_to_end():
    from scmixvi.datasets import pbmc68k

    adata = pbmc68k()[:200].copy()
    MixtureSCVI.setup_anndata(adata)
    model = MixtureSCVI(adata)
    model.train(2, **QUIET)
    assert adata.obsm["X_mix"].shape == (200, 10)
    assert np.isfinite(adata.obsm["X_mix"]).all()


def test_anndata_is_written_and_read_back(trained, adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["X_mix"], adata.obsm["X_mix"])


def test_the_mean_log_likelihood_is_over_cells_however_they_are_batched(trained):
    cells = range(7)
    torch.manual_seed(1)
    by_cell = trained.get_marginal_ll(
        indices=cells, n_mc_samples=50, return_mean=False, batch_size=6
    )
    torch.manual_seed(1)
    found = trained.get_marginal_ll(indices=cells, n_mc_samples=50, batch_size=6)
    assert found == pytest.approx(float(by_cell.mean()), rel=1e-6)
    unequal = (by_cell[:6].mean() + by_cell[6]) / 2
    assert abs(found - float(unequal)) > 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gene_likelihood", "NB"),
        ("latent_distribution", "lnn"),
        ("use_batch_norm", "non"),
        ("dispersion", "genes"),
    ],
)
def test_unknown_options_of_scvi_are_refused(name, value):
    adata = make_adata()
    MixtureSCVI.setup_anndata(adata)
    with pytest.raises(ValueError, match=rf"{name} must be one of \['.*but it is '{value}'"):
        MixtureSCVI(adata, **{name: value})


@pytest.mark.parametrize("weights", [None, "uniform"])
def test_rows_of_sampled_expression_are_named_by_their_cells(make_model, weights):
    """With library sizes the sum of a row is that of its cell's counts, near enough."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    library = model.adata.X.sum(1).A1
    some = np.arange(0, 60, 3)
    found = model.get_normalized_expression(
        indices=some, n_samples_overall=200, library_size="latent", weights=weights
    )
    assert found.shape == (200, model.adata.n_vars)
    cells = model.adata.obs_names.get_indexer(found.index)
    assert set(cells) <= set(some)
    assert len(set(cells)) > 15, "of random cells"
    np.testing.assert_allclose(found.sum(1), library[cells], rtol=1e-3)
    array = model.get_normalized_expression(n_samples_overall=7, return_numpy=True)
    assert array.shape == (7, model.adata.n_vars)

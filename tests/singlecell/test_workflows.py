"""What SCVI's users do beside training and asking: callbacks, minified data, other tools."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from scvi.dataloaders import DeviceBackedDataSplitter
from scvi.hub import HubMetadata, HubModel
from scvi.model import SCVI
from scvi.train import SaveCheckpoint
from scvi.train._callbacks import ScibCallback

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI

WITH_COUNTS = "latent_posterior_parameters_with_counts"


def test_small_data_can_be_kept_on_the_device(make_model):
    """As the FAQ has it: the splitter does not say how many cells it has."""
    model = make_model(n_components=2)
    splitter = DeviceBackedDataSplitter(model.adata_manager, shuffle=True, batch_size=16)
    model.train(max_epochs=2, datamodule=splitter, **QUIET)
    assert model.history["elbo_train"].shape[0] == 2
    assert np.isfinite(model.history["elbo_train"].to_numpy(dtype=float)).all()


@pytest.mark.parametrize("direction", ["from_scvi_model", "to_scvi"])
def test_training_one_model_leaves_the_one_it_came_from(make_model, direction):
    """Embeddings of batches too, which scvi-tools takes over from the weights as they are."""
    cls = SCVI if direction == "from_scvi_model" else MixtureSCVI
    source = make_model(cls, batch_key="batch", batch_representation="embedding")
    source.train(1, **QUIET)
    before = {name: tensor.clone() for name, tensor in source.module.state_dict().items()}
    made = MixtureSCVI.from_scvi_model(source) if cls is SCVI else source.to_scvi(0)
    made.train(2, **QUIET)
    after = source.module.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_an_scvi_that_is_trained_on_adds_to_the_history(make_model):
    model = make_model(n_components=2)
    model.train(2, **QUIET)
    stock = model.to_scvi(0)
    stock.train(3, **QUIET)
    assert len(stock.history["elbo_train"]) == 5
    assert len(model.history["elbo_train"]) == 2


def test_the_history_of_an_scvi_has_nothing_of_components(make_model):
    model = make_model(n_components=2, mixture_weights="learned")
    model.train(1, **QUIET)
    assert {"jsd_train", "weight_0_train"} <= model.history.keys()
    left = model.to_scvi(0).history.keys()
    assert "elbo_train" in left
    assert not any(name.startswith(("jsd", "weight")) for name in left)


def test_refining_with_checkpoints_keeps_the_decoder(make_model, tmp_path):
    """scvi-tools' callback leaves the module in training mode whenever it has saved one."""
    model = make_model(n_components=2, use_batch_norm="both")
    model.train(2, train_size=0.8, **QUIET)
    before = {k: v.clone() for k, v in model.module.state_dict().items() if "decoder" in k}
    callback = SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation")
    model.refine_encoders(3, check_val_every_n_epoch=1, callbacks=[callback], **QUIET)
    after = model.module.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("payload", [False, True])
def test_latents_are_kept_for_scib_metrics_if_asked_for(make_model, payload):
    model = make_model(n_components=2, extra_payload_autotune=payload)
    callback = ScibCallback()
    model.train(1, train_size=0.5, callbacks=[callback], **QUIET)
    kept = getattr(callback.pl_module, "_training_epoch_outputs", None)
    assert (kept is not None) == payload
    assert kept is None or kept["z"].shape == (30, 3)


@pytest.mark.parametrize("distribution", ["normal", "ln"])
def test_latents_for_scib_metrics_are_the_mixture_s_means(make_model, first_batch, distribution):
    model = make_model(
        n_components=2,
        mixture_weights=[0.9, 0.1],
        latent_distribution=distribution,
        extra_payload_autotune=True,
    )
    model.module.eval()
    _, _, loss = model.module(first_batch(model))
    means = model.module.inference(**model.module._get_inference_input(first_batch(model)))["qz"]
    each = means.c_loc.softmax(-1) if distribution == "ln" else means.c_loc
    expected = 0.9 * each[:, 0] + 0.1 * each[:, 1]
    torch.testing.assert_close(loss.extra_metrics["z"], expected)


@pytest.mark.parametrize("update_only_decoder", [False, True])
def test_data_minified_with_counts_can_be_trained_on(make_model, update_only_decoder):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.minify_adata(WITH_COUNTS)
    stored = model.get_latent_representation(representation="params")
    encoder = model.module.z_encoder.mean_encoder.weight.clone()
    decoder = model.module.decoder.px_scale_decoder[0].weight.clone()
    model.train(1, plan_kwargs={"update_only_decoder": update_only_decoder}, **QUIET)
    assert not torch.equal(model.module.decoder.px_scale_decoder[0].weight, decoder)
    assert torch.equal(model.module.z_encoder.mean_encoder.weight, encoder) == update_only_decoder
    np.testing.assert_array_equal(model.get_latent_representation(representation="params"), stored)


def test_minified_data_may_have_had_any_keys(make_model):
    """Also those under which scvi-tools stores what is minified, with one Gaussian a cell."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    params = model.get_latent_representation(representation="params")
    keys = "scvi_latent_qzm", "scvi_latent_qzv"
    for key in keys:
        model.adata.obsm[key] = np.ones((60, 3), np.float32)
    full = model.adata
    model.minify_adata("latent_posterior_parameters", *keys)
    found = model.get_latent_representation(representation="params")
    np.testing.assert_allclose(found, params, rtol=1e-4, atol=1e-6)
    assert sorted(full.obsm) == ["X_mix", *keys]
    assert (full.obsm[keys[0]] == 1).all()


@pytest.mark.parametrize("kind", ["latent_posterior_parameters", WITH_COUNTS])
def test_data_without_counts_are_not_minified_again(make_model, kind):
    """Library sizes are sums of counts, which would be 0."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.minify_adata()
    before = model.adata.copy()
    with pytest.raises(ValueError, match="minified without counts already: load the model with"):
        model.minify_adata(kind)
    assert model.minified_data_type == "latent_posterior_parameters"
    pd.testing.assert_frame_equal(model.adata.obs, before.obs)
    assert list(model.adata.obsm) == list(before.obsm)


def test_minified_and_full_data_do_not_stand_in_for_each_other(make_model, tmp_path):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.save(tmp_path / "full")
    full = MixtureSCVI.load(tmp_path / "full", adata=model.adata.copy())
    model.minify_adata()
    minified, other = model.adata.copy(), make_adata()
    for ask in (full.get_latent_representation, full.get_elbo, full.get_normalized_expression):
        with pytest.raises(ValueError, match="adata is minified without counts.*ask the model"):
            ask(minified)
    np.testing.assert_array_equal(
        model.get_latent_representation(minified), model.get_latent_representation()
    )
    columns = list(other.obs)
    with pytest.raises(ValueError, match="no posteriors like theirs: load the model with the full"):
        model.get_latent_representation(other)
    assert (list(other.obs), dict(other.uns)) == (columns, {})


def test_counts_are_asked_for_only_where_they_are_needed(make_model, tmp_path):
    """A model of data minified with counts reads what data minified without them hold."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.save(tmp_path / "full")
    other = MixtureSCVI.load(tmp_path / "full", adata=model.adata.copy())
    model.minify_adata("latent_posterior_parameters_with_counts")
    other.minify_adata("latent_posterior_parameters")
    bare = other.adata.copy()
    np.testing.assert_allclose(
        model.get_latent_representation(bare), other.get_latent_representation(), atol=1e-6
    )
    assert model.get_normalized_expression(bare).shape == (60, 23)
    assert model.get_feature_correlation_matrix(bare).shape == (23, 23)
    compared = model.differential_expression(bare, groupby="batch", silent=True)
    assert len(compared) == 2 * 23
    for ask, arguments in (
        (model.get_elbo, {}),
        (model.get_reconstruction_error, {}),
        (model.get_marginal_ll, {"n_mc_samples": 4}),
        (model.get_variational_gap, {"progress": False}),
        (model.get_posterior_samples, {"progress": False}),
        (model.get_latent_representation, {"n_refinement_steps": 1, "progress": False}),
        (model.get_normalized_expression, {"n_samples_overall": 4, "weights": "importance"}),
        (
            model.get_normalized_expression,
            {"n_samples_overall": 4, "weights": "importance_by_cell"},
        ),
    ):
        with pytest.raises(ValueError, match="minified without counts, which this question is ab"):
            ask(bare, **arguments)
        assert ask(**arguments) is not None


def test_abundance_is_scored_in_passes(make_model, monkeypatch):
    """Each holds a few values' distances to all components of all cells."""
    model = make_model(n_components=3)
    model.train(1, **QUIET)
    z = torch.randn(2, 7, 3)
    whole = model.get_aggregated_posterior(dof=None)
    expected = torch.distributions.MixtureSameFamily.log_prob(whole, z)
    sizes, score = [], torch.distributions.MixtureSameFamily.log_prob

    def noted(self, value):
        sizes.append(len(value))
        return score(self, value)

    monkeypatch.setattr(torch.distributions.MixtureSameFamily, "log_prob", noted)
    monkeypatch.setattr("scmixvi.singlecell._queries.groups._ELEMENTS_A_PASS", 4 * 60 * 3 * 3)
    torch.testing.assert_close(whole.log_prob(z), expected)
    assert sizes == [4, 4, 4, 2]
    torch.testing.assert_close(whole.log_prob(z[1, 3]), expected[1, 3])


@pytest.mark.parametrize("minified", [False, True])
def test_a_model_comes_back_from_what_scvi_tools_shares_on_its_hub(make_model, tmp_path, minified):
    """The folder that is pushed, with the metadata that are read after a pull."""
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    latents = model.get_latent_representation()
    if minified:
        model.minify_adata()
    model.save(str(tmp_path), overwrite=True, save_anndata=True)
    origin = {"anndata_version": anndata.__version__, "model_parent_module": "scmixvi"}
    HubMetadata.from_dir(str(tmp_path), **origin).save(str(tmp_path / "metadata.json"))
    pulled = HubModel(
        str(tmp_path), metadata=str(tmp_path / "metadata.json"), model_card=ModelCard("# card")
    )
    assert isinstance(pulled.model, MixtureSCVI)
    assert pulled.model.minified_data_type == model.minified_data_type
    assert np.allclose(pulled.model.get_latent_representation(), latents, atol=1e-5)


def test_data_minified_with_counts_are_minified_again_by_what_was_learned_since(make_model):
    model = make_model(n_components=2)
    model.train(1, **QUIET)
    model.minify_adata(WITH_COUNTS)
    before = model.get_latent_representation(representation="params")
    model.train(2, **QUIET)
    encoded = model.module.inference
    model.minify_adata(WITH_COUNTS)
    after = model.get_latent_representation(representation="params")
    assert np.abs(after - before).max() > 1e-3
    counts = torch.from_numpy(model.adata.X.toarray())
    batch = torch.zeros(len(counts), 1)
    qz = encoded(counts, batch_index=batch)["qz"]
    np.testing.assert_allclose(
        after[:, : qz.c_loc[0].numel()], qz.c_loc.flatten(1).detach(), atol=1e-5
    )


def test_an_upgrade_of_minified_data_says_whose_posterior_they_hold(make_model):
    stock = make_model(SCVI)
    stock.train(1, **QUIET)
    stock.adata.obsm["X_latent_qzm"], stock.adata.obsm["X_latent_qzv"] = (
        stock.get_latent_representation(return_dist=True)
    )
    stock.minify_adata(WITH_COUNTS)
    with pytest.warns(UserWarning, match="posterior of the one encoder that they hold"):
        model = MixtureSCVI.from_scvi_model(stock, n_components=3)
    assert model.get_component_weights().shape[1] == 1
    model.minify_adata(WITH_COUNTS)
    assert model.get_component_weights().shape[1] == 3


@pytest.mark.parametrize("direction", ["from_scvi_model", "to_scvi"])
def test_other_data_are_not_split_as_the_model_s_own(make_model, direction):
    cls = SCVI if direction == "from_scvi_model" else MixtureSCVI
    source = make_model(cls)
    source.train(1, **QUIET)
    others = make_adata(30, seed=8)
    others.obs_names = [f"other{i}" for i in range(30)]
    for data in (others, source.adata.copy()):
        made = (
            MixtureSCVI.from_scvi_model(source, adata=data)
            if cls is SCVI
            else source.to_scvi(0, adata=data)
        )
        if data is others:
            assert made.train_indices is None
        else:
            np.testing.assert_array_equal(made.train_indices, source.train_indices)


@pytest.mark.parametrize("sparse", [True, False])
def test_models_encode_where_torch_s_default_is_float64(make_model, sparse):
    data = make_adata()
    data.X = data.X if sparse else data.X.toarray()
    model = make_model(n_components=2, data=data)
    model.train(1, **QUIET)
    expected = model.get_latent_representation()
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_allclose(model.get_latent_representation(), expected, atol=1e-6)
        model.train(1, **QUIET)
        assert np.isfinite(model.adata.obsm["X_mix"]).all()
    finally:
        torch.set_default_dtype(torch.float32)

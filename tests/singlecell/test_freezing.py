"""A model made of a query model (scArches) trains what that one trains."""

import numpy as np
import pytest
from scvi.model import SCVI

from counts import QUIET, make_adata
from scmixvi import MixtureSCVI

KEEP = {"plan_kwargs": {"weight_decay": 0.0}, **QUIET}
OTHER_THAN_USUAL = {
    "freeze_dropout": True,
    "freeze_expression": False,
    "freeze_decoder_first_layer": False,
    "freeze_batchnorm_encoder": False,
    "freeze_batchnorm_decoder": True,
}


@pytest.fixture
def reference():
    def make(cls):
        adata = make_adata()
        cls.setup_anndata(adata, batch_key="batch")
        model = cls(adata, n_hidden=8, n_latent=2)
        model.train(2, **QUIET)
        return model, adata

    return make


def queries():
    adata = make_adata(30, seed=5)
    adata.obs["batch"] = "new"
    return adata


def trained(model):
    return {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}


def test_latents_of_the_reference_stay_where_they_are_after_an_upgrade(reference, tmp_path):
    first, adata = reference(SCVI)
    query = SCVI.load_query_data(queries(), first)
    query.train(1, **KEEP)
    model = MixtureSCVI.from_scvi_model(query, n_components=2)
    before = model.get_latent_representation(adata)
    model.train(5, **KEEP)
    np.testing.assert_allclose(model.get_latent_representation(adata), before, atol=1e-5)
    model.save(str(tmp_path / "model"), save_anndata=True)
    again = MixtureSCVI.load(str(tmp_path / "model"))
    again.train(5, **KEEP)
    np.testing.assert_allclose(again.get_latent_representation(adata), before, atol=1e-5)


def test_latents_of_the_reference_stay_where_they_are_after_the_way_back(reference):
    first, adata = reference(MixtureSCVI)
    query = MixtureSCVI.load_query_data(queries(), first)
    query.train(1, **KEEP)
    stock = query.to_scvi(0)
    before = stock.get_latent_representation(adata)
    stock.train(5, **KEEP)
    np.testing.assert_allclose(stock.get_latent_representation(adata), before, atol=1e-5)


@pytest.mark.parametrize(
    "changed", [{}, *({name: value} for name, value in OTHER_THAN_USUAL.items())]
)
def test_what_was_frozen_is_read_off_scvi_s_module(reference, changed):
    first, _ = reference(SCVI)
    query = SCVI.load_query_data(queries(), first, **changed)
    model = MixtureSCVI.from_scvi_model(query, n_components=1)
    usual = {name: not value for name, value in OTHER_THAN_USUAL.items()}
    expected = {"unfrozen": False, "freeze_classifier": True, **usual, **changed}
    assert model.query_freezing_ == expected
    assert trained(model) == trained(query)


def test_models_that_are_no_queries_train_everything(reference):
    first, _ = reference(SCVI)
    unfrozen = SCVI.load_query_data(queries(), first, unfrozen=True)
    for source in (first, unfrozen):
        model = MixtureSCVI.from_scvi_model(source, n_components=2)
        assert trained(model) == {name for name, _ in model.module.named_parameters()}
        assert not hasattr(model, "query_freezing_")
